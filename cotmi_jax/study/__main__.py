"""Run a study: python -m cotmi_jax.study --config=configs/studies/first.py --workdir=studies/first.

The same command resumes the study; started several times, also on several hosts, it works on several runs at once.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_CONFIG = flags.DEFINE_string(
    "config", None, "The study file, or the name of one of the package; STUDY:smoke is the same at CPU size."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study; may be gs://.")
_STATUS = flags.DEFINE_bool("status", False, "Print the state of every run, and run none. Needs no --config.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the runs with their commands and estimated hours, and run none.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "With --dry_run: hours on this slice, such as v5e-8, or h100, from programs compiled for it (aot)."
)
_ONLY = flags.DEFINE_string(
    "only", "", "Runs whose names contain this, or that have key=value; several terms, separated by commas, all hold."
)
_RETRY_FAILED = flags.DEFINE_bool("retry_failed", False, "Run failed runs once more; they resume.")
_FAIL_FAST = flags.DEFINE_bool("fail_fast", False, "Stop at the first run that fails; also if another worker runs it.")
_CHANGED_CODE = flags.DEFINE_enum(
    "changed_code",
    "error",
    ["error", "keep", "rerun"],
    "Where runs were made by other code: keep them and run the others by this code, or run all again, under new names.",
)
_LAUNCHER = flags.DEFINE_enum(
    "launcher", None, ["slurm", "xpk", "queued"], "Submit each run as a job: launch/slurm.sh, gke_xpk.sh or tpu_vm.sh."
)
_LAUNCHER_FLAG = flags.DEFINE_multi_string(
    "launcher_flag", [], "A flag of the launcher's script, as --launcher_flag=--time=24:00:00 (repeatable)."
)
flags.mark_flag_as_required("workdir")
flags.register_multi_flags_validator(
    ["config", "status"],
    lambda values: values["config"] is not None or values["status"],
    "--config must have a value, except with --status",
)


def main() -> int:
    """Run, or show, a study from the flags."""
    import os

    import jax

    jax.config.update("jax_platforms", "cpu")  # the commands of the runs need the accelerators

    from cotmi_jax.study.launchers import accompany, rank, submit
    from cotmi_jax.study.plan import load_plan
    from cotmi_jax.study.record import read_study
    from cotmi_jax.study.study import Study
    from cotmi_jax.study.table import dry_run, status
    from cotmi_jax.study.worker import Options, Worker
    from cotmi_jax.workdir.record import run_directory

    if _STATUS.value and _CONFIG.value is None:
        print(status(read_study(_WORKDIR.value)))
        return 0
    plan = load_plan(_CONFIG.value)
    folder = run_directory(_WORKDIR.value)
    study = Study(folder, plan, only=_ONLY.value)
    for note in plan.notes:
        study.say(note)
    if _LAUNCHER.value and not _STATUS.value:
        given = _LAUNCHER.value, _LAUNCHER_FLAG.value, _CONFIG.value, study
        again, changed_code = _RETRY_FAILED.value, _CHANGED_CODE.value
        return submit(*given, again=again, dry_run=_DRY_RUN.value, changed_code=changed_code)
    if _STATUS.value or _DRY_RUN.value:
        print(dry_run(study, _TOPOLOGY.value) if _DRY_RUN.value else status(study.previewed()))
        return 0
    if rank(os.environ):
        return accompany(study)
    in_job = bool(os.environ.get("COTMI_COORDINATOR"))
    options = Options(_RETRY_FAILED.value, _FAIL_FAST.value, _CHANGED_CODE.value, in_job=in_job)
    return Worker(_CONFIG.value, study, options).work()


if __name__ == "__main__":
    cli.run(main)
