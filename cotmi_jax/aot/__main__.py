"""Compile a run's programs for TPUs on any machine: python -m cotmi_jax.aot --config=C.py --topology=v5e-8."""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "A TPU slice, such as v5e-64, or its grid of chips, v5e:8x8; or h100, one GPU."
)
_ROWS = flags.DEFINE_integer("rows", 0, "Rows of a packed batch; 0: as many as config.batch_size.", lower_bound=0)
_INPUT = flags.DEFINE_integer("input_length", 0, "Input tokens a row; 0: data.max_input_tokens.", lower_bound=0)
_TARGET = flags.DEFINE_integer("target_length", 0, "Target tokens a row; 0: data.max_target_tokens.", lower_bound=0)
_PROGRAMS = flags.DEFINE_list("programs", ["train", "evaluate", "generate"], "Programs to compile.")
_QUICK = flags.DEFINE_bool(
    "quick", False, "Compile with less effort: two to three times as fast, memory overestimated by a few per cent."
)
_JSON = flags.DEFINE_string("json", None, "File for the results as JSON.")
flags.mark_flags_as_required(["config", "topology"])


def main() -> int:
    """Compile from the flags; 0 if everything fits, else 1."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is executed: leave the accelerators of this machine free

    import json
    from pathlib import Path

    from cotmi_jax.aot.programs import check_names, default_shape, programs, summary
    from cotmi_jax.aot.report import compile_program, compiler_options, format_reports, shortage
    from cotmi_jax.aot.topology import topology_devices
    from cotmi_jax.files import replace_file, user_error_on_failure
    from cotmi_jax.parallel.accelerators import find_accelerator
    from cotmi_jax.parallel.mesh import make_mesh

    config, devices = _CONFIG.value, topology_devices(_TOPOLOGY.value)
    accelerator = find_accelerator(devices[0].device_kind)
    assert accelerator is not None, devices[0].device_kind
    mesh = make_mesh(**config.mesh.to_dict(), devices=devices)
    lengths = {"rows": _ROWS.value, "input_length": _INPUT.value, "target_length": _TARGET.value}
    names, available = check_names(_PROGRAMS.value), programs(config, mesh, default_shape(config, mesh, **lengths))
    reports = {}
    print(summary(config, mesh, _TOPOLOGY.value, accelerator.name), flush=True)
    with jax.set_mesh(mesh):
        for name in names:
            options = compiler_options(accelerator, quick=_QUICK.value)
            reports[name] = compile_program(available[name], accelerator, options)
    print(format_reports(reports, len(devices), accelerator))
    if _JSON.value:
        head = {"topology": _TOPOLOGY.value, "device": accelerator.name, "mesh": dict(mesh.shape)}
        content = head | {"programs": {name: report.to_json() for name, report in reports.items()}}
        with user_error_on_failure(f"cannot write --json {_JSON.value}", "give a file in a folder that can be written"):
            replace_file(Path(_JSON.value), json.dumps(content, indent=1) + "\n")
    short = [shortage(name, report) for name, report in reports.items() if not report.fits]
    print("\n".join(short) or "everything fits")
    return 1 if short else 0


if __name__ == "__main__":
    cli.run(main)
