"""Collectives parsed from HLO: hand-written modules in each notation, and programs of known communication volume."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from cotmi_jax.aot.hlo import KINDS, Collectives, array_bytes, read_collectives
from cotmi_jax.parallel.batch import batch_sharding
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import replicated

HEAD = "HloModule jit_step, is_scheduled=true, num_partitions=8"


def module(*computations: str) -> Collectives:
    return read_collectives("\n\n".join([HEAD, *computations]))


def entry(*lines: str) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"ENTRY %main (p: f32[16]) -> f32[16] {{\n{body}\n}}"


def totals(found: Collectives) -> dict[str, tuple[int, float, float]]:
    return {kind: found.total(kind) for kind in KINDS if found.total(kind)[0]}


def test_array_bytes() -> None:
    assert array_bytes("f32[4,2]{1,0:T(8,128)(2,1)S(1)}") == 32
    assert array_bytes("(bf16[3], /*index=1*/pred[5]{0}, s4[4], token[])") == 6 + 5 + 2
    assert array_bytes("f32[]") == 4
    assert array_bytes("f8e4m3fn[<=8]") == 8


@pytest.mark.parametrize(
    "groups", ["{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]", "mesh['a'=2,'b'=4] {'b'}", "mesh['a'=8] {'a':(1)4}"]
)
def test_bytes_and_bytes_sent(groups: str) -> None:
    found = module(
        entry(
            "%p = f32[16]{0} parameter(0)",
            f"%gather = f32[64]{{0}} all-gather(%p), channel_id=2, replica_groups={groups}, dimensions={{0}}",
            f"%scatter = f32[4]{{0}} reduce-scatter(%p), channel_id=3, replica_groups={groups}, to_apply=%add",
            f"%swap = f32[16]{{0}} all-to-all(%p), channel_id=4, replica_groups={groups}, dimensions={{0}}",
            f"%sum = (f32[16]{{0}}, f32[16]{{0}}) all-reduce(%p, %p), channel_id=5, replica_groups={groups}",
            "%turn = f32[16]{0} collective-permute(%p), channel_id=6, source_target_pairs={{0,1},{1,0}}",
            "ROOT %out = f32[16]{0} copy(%turn)",
        )
    )
    assert totals(found) == {
        "all-gather": (1, 256, 192),
        "reduce-scatter": (1, 64, 48),
        "all-to-all": (1, 64, 48),
        "all-reduce": (1, 128, 192),
        "collective-permute": (1, 64, 64),
    }


def test_a_group_of_one_sends_nothing_and_empty_groups_mean_all_devices() -> None:
    found = module(
        entry(
            "%p = f32[16]{0} parameter(0)",
            "%alone = f32[16]{0} all-reduce(%p), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}",
            "ROOT %all = f32[16]{0} all-reduce(%p), replica_groups={}",
        )
    )
    assert totals(found) == {"all-reduce": (1, 64, 112)}


def test_asynchronous_pairs_count_once() -> None:
    pair = "(f32[16]{0}, f32[128]{0})"
    found = module(
        entry(
            "%p = f32[16]{0} parameter(0)",
            f"%begin = {pair} all-gather-start(%p), channel_id=2, replica_groups=[1,8]<=[8], dimensions={{0}}",
            "ROOT %end = f32[128]{0} all-gather-done(%begin)",
        )
    )
    assert totals(found) == {"all-gather": (1, 512, 448)}


def spread(*calls: str, inside: tuple[str, ...] = ()) -> Collectives:
    """An asynchronous collective with copies in the fusions that the entry `calls`, and in a loop of 3 iterations."""
    gather = "all-gather(%q), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}"
    fusions = [
        f"%{name} (q: f32[16]) -> f32[128] {{\n  %q = f32[16]{{0}} parameter(0)\n  %g.{name} = f32[128]{{0}} {gather}\n"
        f"  ROOT %r.{name} = f32[128]{{0}} {root}\n}}"
        for name, root in (
            ("start", 'custom-call(%g.start), custom_call_target="AsyncCollectiveStart"'),
            ("meanwhile", "copy(%g.meanwhile)"),
            ("done", 'custom-call(%g.done), custom_call_target="AsyncCollectiveDone"'),
        )
    ]
    looped = [f"  %i.{name} = f32[128]{{0}} fusion(%t), kind=kCustom, calls=%{name}" for name in inside]
    body = "%body (t: f32[16]) -> f32[16] {\n" + "\n".join(["  %t = f32[16]{0} parameter(0)", *looped]) + "\n}"
    lines = {
        name: f"%f.{name} = f32[128]{{0}} fusion(%p), kind=kCustom, calls=%{name}"
        for name in ("start", "meanwhile", "done")
    }
    lines["alone"] = f"%alone = f32[128]{{0}} {gather.replace('%q', '%p')}"
    note = 'backend_config={"known_trip_count":{"n":"3"}}'
    lines["loop"] = f"%w = f32[16]{{0}} while(%p), condition=%none, body=%body, {note}"
    return module(*fusions, body, entry("%p = f32[16]{0} parameter(0)", *(lines[name] for name in calls)))


def test_an_asynchronous_collective_copied_into_fusions_counts_once() -> None:
    assert totals(spread("start", "meanwhile", "done")) == {"all-gather": (1, 512, 448)}
    assert totals(spread("start", "loop", "done", inside=("meanwhile",))) == {"all-gather": (1, 512, 448)}
    assert totals(spread("loop", inside=("start", "meanwhile", "done"))) == {"all-gather": (3, 3 * 512, 3 * 448)}


def test_a_separate_collective_of_the_same_channel_and_type_counts() -> None:
    twice = {"all-gather": (2, 2 * 512, 2 * 448)}
    assert totals(spread("start", "done", "meanwhile")) == twice
    assert totals(spread("start", "alone", "done")) == twice
    assert totals(spread("start", "done", "loop", inside=("meanwhile",))) == {"all-gather": (4, 4 * 512, 4 * 448)}


def test_an_all_reduce_that_is_sliced_is_a_reduce_scatter() -> None:
    fused = (
        "%all-reduce-scatter.3 (q: f32[16]) -> f32[2] {\n  %q = f32[16]{0} parameter(0)\n"
        "  %sum = f32[16]{0} all-reduce(%q), replica_groups=[1,8]<=[8], to_apply=%add\n"
        "  ROOT %slice = f32[2]{0} dynamic-slice(%sum, %q), dynamic_slice_sizes={2}\n}"
    )
    call = "ROOT %f = f32[2]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3"
    assert totals(module(fused, entry("%p = f32[16]{0} parameter(0)", call))) == {"reduce-scatter": (1, 64, 56)}


def loop(bound: str, step: int = 1, note: str = "") -> Collectives:
    """A loop over a counter from 0 to `bound`, with an all-reduce of 64 bytes in it."""
    body = (
        "%body (t: (s32[], f32[16])) -> (s32[], f32[16]) {\n  %t = (s32[], f32[16]{0}) parameter(0)\n"
        "  %i = s32[] get-tuple-element(%t), index=0\n  %x = f32[16]{0} get-tuple-element(%t), index=1\n"
        f"  %one = s32[] constant({step})\n  %next = s32[] add(%i, %one)\n"
        "  %sum = f32[16]{0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add\n"
        "  ROOT %out = (s32[], f32[16]{0}) tuple(%next, %sum)\n}"
    )
    condition = (
        "%condition (t.1: (s32[], f32[16])) -> pred[] {\n  %t.1 = (s32[], f32[16]{0}) parameter(0)\n"
        f"  %i.1 = s32[] get-tuple-element(%t.1), index=0\n  %end = s32[] {bound}\n"
        "  ROOT %go = pred[] compare(%i.1, %end), direction=LT\n}"
    )
    main = entry(
        "%p = f32[16]{0} parameter(0)",
        "%zero = s32[] constant(0)",
        "%from = s32[] copy(%zero)",
        "%start = (s32[], f32[16]{0}) tuple(%from, %p)",
        f'%w = (s32[], f32[16]{{0}}) while(%start), condition=%condition, body=%body, metadata={{op_name="s"}}{note}',
        "ROOT %out = f32[16]{0} get-tuple-element(%w), index=1",
    )
    return module(body, condition, main)


def test_loop_bodies_count_once_per_iteration() -> None:
    assert totals(loop("constant(5)")) == {"all-reduce": (5, 320, 560)}
    assert totals(loop("constant(7)", step=2)) == {"all-reduce": (4, 256, 448)}
    note = ', backend_config={"known_trip_count":{"n":"9"}}'
    assert totals(loop("parameter(1)", note=note)) == {"all-reduce": (9, 576, 1008)}
    assert not loop("constant(5)").unbounded
    assert loop("constant(5)").sent_per_iteration() == 0


def test_a_loop_whose_length_depends_on_data_counts_once_and_is_named() -> None:
    found = loop("parameter(1)")
    assert (totals(found), found.unbounded) == ({"all-reduce": (1, 64, 112)}, ("s",))
    assert found.sent_per_iteration() == 112


def test_a_conditional_counts_the_branch_that_sends_most() -> None:
    branches = [
        f"%{name} (q: f32[16]) -> f32[16] {{\n  %q = f32[16]{{0}} parameter(0)\n  ROOT %r = f32[16]{{0}} {what}\n}}"
        for name, what in (("cheap", "copy(%q)"), ("costly", "all-reduce(%q), replica_groups=[1,8]<=[8]"))
    ]
    choice = "ROOT %c = f32[16]{0} conditional(%p, %p, %p), branch_computations={%cheap, %costly}"
    assert totals(module(*branches, entry("%p = f32[16]{0} parameter(0)", choice))) == {"all-reduce": (1, 64, 112)}


def test_collectives_of_programs_compiled_for_cpu() -> None:
    mesh = make_mesh()
    x = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=batch_sharding(mesh))

    def five_sums(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(jax.lax.psum(x, "data")), x)

    spec = PartitionSpec("data")
    summed = jax.jit(jax.shard_map(five_sums, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    assert totals(read_collectives(summed.lower(x).compile().as_text())) == {"all-reduce": (5, 5 * 128, 5 * 224)}
    gathered = jax.jit(lambda x: x, out_shardings=replicated(mesh)).lower(x).compile()
    assert totals(read_collectives(gathered.as_text())) == {"all-gather": (1, 1024, 896)}
