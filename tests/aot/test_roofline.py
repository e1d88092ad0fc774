"""Bytes, operations and time of HLO modules: hand-written ones whose figures can be counted, and a compiled one."""

import jax
import jax.numpy as jnp
import pytest

from cotmi_jax.aot.hlo import Module
from cotmi_jax.aot.roofline import Cost, Roofline, read_roofline

KIB = 1 << 10


def roofline(*computations: str, bandwidth: float = 1.0, peak: float = 1.0) -> Roofline:
    text = "\n\n".join(["HloModule jit_step, is_scheduled=true", *computations])
    return read_roofline(Module(text), bandwidth=bandwidth, peak=peak)


def computation(head: str, *lines: str) -> str:
    return f"{head} {{\n" + "\n".join(f"  {line}" for line in lines) + "\n}"


def entry(*lines: str) -> str:
    return computation("ENTRY %main (p: f32[256]) -> f32[256]", *lines)


def cost(*lines: str) -> Cost:
    """Of an entry computation with a parameter of 1 KiB and these instructions."""
    return roofline(entry("%p = f32[256]{0} parameter(0)", *lines)).total


def test_an_instruction_reads_its_operands_and_writes_its_result() -> None:
    assert cost("ROOT %s = f32[256]{0} add(%p, %p)").bytes == 3 * KIB
    assert cost("%b = f32[16,16]{1,0} bitcast(%p)", "ROOT %s = bf16[16,16]{1,0} convert(%b)").bytes == 1.5 * KIB
    started = "%c = (f32[256]{0:T(256)S(1)}, f32[256]{0}, u32[]{:S(2)}) copy-start(%p)"
    assert cost(started, "ROOT %d = f32[256]{0:T(256)S(1)} copy-done(%c)").bytes == KIB  # the copy is in vector memory


def test_a_slice_or_an_update_in_place_counts_the_slice() -> None:
    piece = "%z = f32[16]{0} dynamic-slice(%p, %i), dynamic_slice_sizes={16}"
    assert cost("%i = s32[] constant(0)", piece).bytes == 2 * 64 + 4
    update = "ROOT %u = f32[256]{0} dynamic-update-slice(%p, %z, %i)"
    assert cost("%i = s32[] constant(0)", piece, update).bytes == 2 * (2 * 64 + 4)


FUSED = computation(
    "%fused (q: f32[12,256], i: s32[], x: f32[256]) -> (f32[12,256], f32[256])",
    "%q = f32[12,256]{1,0} parameter(0)",
    "%i = s32[] parameter(1)",
    "%x = f32[256]{0} parameter(2)",
    "%same = f32[12,256]{1,0} fusion(%q), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%tiled",
    "%row = f32[1,256]{1,0} dynamic-slice(%same, %i, %i), dynamic_slice_sizes={1,256}",
    "%flat = f32[256]{0} bitcast(%row)",
    "%sum = f32[256]{0} add(%flat, %x)",
    "%back = f32[1,256]{1,0} bitcast(%sum)",
    "%all = f32[12,256]{1,0} dynamic-update-slice(%q, %back, %i, %i)",
    "ROOT %both = (f32[12,256]{1,0}, f32[256]{0}) tuple(%all, %sum)",
)
TILED = computation(
    "%tiled (r: f32[12,256]) -> f32[12,256]",
    "%r = f32[12,256]{1,0} parameter(0)",
    "ROOT %copied = f32[12,256]{1,0} copy(%r)",
)


def test_a_fusion_counts_what_it_reads_of_each_operand_and_what_it_writes() -> None:
    found = roofline(
        FUSED,
        TILED,
        entry(
            "%p = f32[256]{0} parameter(0)",
            "%stack = f32[12,256]{1,0} parameter(1)",
            "%i = s32[] parameter(2)",
            "ROOT %f = (f32[12,256]{1,0}, f32[256]{0}) fusion(%stack, %i, %p), kind=kLoop, calls=%fused",
        ),
    )
    assert found.total.bytes == 2 * KIB + 4 + 2 * KIB  # a row and x; the index; a row and the sum


@pytest.mark.parametrize("annotated, iterations", [(True, 5), (False, 1)])
def test_loops_count_each_iteration_and_unbounded_ones_are_apart(annotated: bool, iterations: int) -> None:
    body = computation(
        "%body (t: f32[256]) -> f32[256]", "%t = f32[256]{0} parameter(0)", "ROOT %n = f32[256] negate(%t)"
    )
    condition = computation("%stop (t: f32[256]) -> pred[]", "ROOT %s = pred[] parameter(0)")
    note = ', backend_config={"known_trip_count":{"n":"5"}}' * annotated
    loop = f"ROOT %w = f32[256]{{0}} while(%p), condition=%stop, body=%body{note}"
    found = roofline(body, condition, entry("%p = f32[256]{0} parameter(0)", loop))
    assert found.total == Cost(iterations * 2 * KIB, 0.0, 0.0, iterations * 2 * KIB)
    assert found.iteration == (Cost() if annotated else found.total)


def test_unsigned_integers_count_as_random_bits() -> None:
    found = cost("%r = u32[256]{0} custom-call(%p)", "ROOT %k = pred[256]{0} compare(%r, %r)")
    assert (found.bytes, found.random_bits) == (2 * KIB + 2 * KIB + 256, 3 * KIB)


@pytest.mark.parametrize(
    "types, attributes, multiplies",
    [
        (("8,16", "16,4", "8,4"), "convolution|dim_labels=bf_io->bf", 8 * 16 * 4),
        # Heads as a window of 12 over a padded axis of one: every output sees one element.
        (
            ("2,256,768,1", "768,12,64,2", "2,256,12,64"),
            "convolution|window={size=1x12 pad=0_0x11_11 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f",
            2 * 256 * 768 * 12 * 64,
        ),
        # A batch dimension as a window over a dilated axis: only the diagonal counts.
        (
            ("26,8,4", "26,4,3", "26,8,3"),
            "convolution|window={size=26 stride=25 lhs_dilate=26}, dim_labels=0bf_0io->0bf",
            26 * 8 * 4 * 3,
        ),
        (("8,16", "16,4", "8,4"), "dot|lhs_contracting_dims={1}, rhs_contracting_dims={0}", 8 * 16 * 4),
    ],
)
def test_operations_of_a_matrix_multiplication(types: tuple[str, ...], attributes: str, multiplies: int) -> None:
    left, right, result = (f"f32[{dims}]{{0}}" for dims in types)
    opcode, rest = attributes.split("|")
    lines = (f"%a = {left} parameter(1)", f"%b = {right} parameter(2)", f"ROOT %m = {result} {opcode}(%a, %b), {rest}")
    assert cost(*lines).flops == 2 * multiplies


def test_a_kernel_states_its_own_operations() -> None:
    estimate = '"custom_call_config": {"cost_estimate":{"flops":"1000","transcendentals":"7","bytes_accessed":"9"}}'
    line = (
        f'ROOT %k = f32[256]{{0}} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={{{estimate}}}'
    )
    assert cost(line).flops == 1000


def test_the_time_is_that_of_the_slower_resource_of_each_instruction() -> None:
    lines = (
        "%p = f32[8,16]{1,0} parameter(0)",
        "%w = f32[16,4]{1,0} parameter(1)",
        "%m = f32[8,4]{1,0} dot(%p, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        "ROOT %n = f32[8,4]{1,0} negate(%m)",
    )
    moved, flops = 4 * (8 * 16 + 16 * 4 + 8 * 4), 2 * 8 * 16 * 4
    assert roofline(entry(*lines), bandwidth=1e3, peak=1.0).total.seconds == flops + 4 * 2 * 8 * 4 / 1e3
    assert roofline(entry(*lines), bandwidth=1.0, peak=1e6).total.seconds == moved + 4 * 2 * 8 * 4


def test_a_loop_of_matrix_multiplications_compiled_for_cpu() -> None:
    def chained(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 6, lambda _, x: jnp.tanh(x @ w), x)

    shapes = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 32), jnp.float32)
    text = jax.jit(chained).lower(*shapes).compile().as_text()
    found = read_roofline(Module(text), bandwidth=1.0, peak=1.0).total
    assert found.flops == 6 * 2 * 64 * 32 * 32
    assert found.bytes >= 6 * 4 * (2 * 64 * 32 + 32 * 32)
