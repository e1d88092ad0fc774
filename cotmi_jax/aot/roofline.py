"""Bytes that an optimized HLO module moves, its floating-point operations, and a lower bound of its time.

The roofline (Williams, Waterman and Patterson 2009) of a program is Σ max(bytes / bandwidth, FLOPs / peak) over its
instructions, executed one after another. XLA's own cost analysis counts the body of a loop once; here it counts as
often as the loop repeats. Does not import jax.
"""

import dataclasses
import functools
import re

from cotmi_jax.aot.hlo import ARRAY, Computation, Instruction, Module, array_bytes, branches, trip_count

# Instructions that give another name or type to memory, or that reserve it.
_FREE = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"})
_CALLED = r"(?:calls|to_apply)=%?([\w.\-]+)"


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a device does in one execution. An unbounded loop counts as one iteration, as in hlo.Collectives.

    bytes: operands and results of every instruction that reads or writes the device's main memory. A fusion is one
      instruction. Of an array that is only sliced, gathered or updated in place, the slices count. Tile padding and
      arrays in another memory space (a TPU's vector memory) do not.
    random_bits: of these, the bytes of arrays of unsigned integers. A training step draws the bits of its dropout masks
      as such, and has no other of any size.
    flops: of matrix multiplications and convolutions, two per multiply-add; without those on padding and on the zeros
      of a dilation. Of a Pallas kernel, its own estimate.
    seconds: the roofline.
    """

    bytes: float = 0.0
    random_bits: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.bytes + other.bytes,
            self.random_bits + other.random_bits,
            self.flops + other.flops,
            self.seconds + other.seconds,
        )

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.bytes * times, self.random_bits * times, self.flops * times, self.seconds * times)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Cost of a program, and of one iteration of its unbounded loops (zero without any)."""

    total: Cost
    iteration: Cost


def read_roofline(module: Module, *, bandwidth: float, peak: float) -> Roofline:
    """The roofline of a module on a device with these bytes/s and FLOP/s."""
    return _Walk(module, bandwidth, peak).of(module.entry)


@dataclasses.dataclass(frozen=True)
class _Size:
    """Bytes of arrays in main memory; of them, those of unsigned integers."""

    bytes: float = 0.0
    unsigned: float = 0.0

    def __add__(self, other: "_Size") -> "_Size":
        return _Size(self.bytes + other.bytes, self.unsigned + other.unsigned)


def _size(type_text: str) -> _Size:
    """Size of an array, or of all arrays of a tuple."""
    total = unsigned = 0.0
    for array in ARRAY.finditer(type_text):
        if not re.match(r"\{[^}]*S\([1-9]\d*\)", type_text[array.end() :]):
            size = array_bytes(array.group())
            total += size
            unsigned += size if re.fullmatch(r"u\d+", array.group(1)) else 0.0
    return _Size(total, unsigned)


class _Walk:
    """Sums costs over the instructions of a module."""

    def __init__(self, module: Module, bandwidth: float, peak: float):
        self.module, self.bandwidth, self.peak = module, bandwidth, peak
        self._reads, self._writes = functools.cache(self._read_size), functools.cache(self._written_size)
        self._flops = functools.cache(self._computation_flops)

    def of(self, name: str) -> Roofline:
        """The cost of a computation."""
        total = iteration = Cost()
        computation = self.module.computations[name]
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                trips = trip_count(self.module, computation, instruction)
                body = self.of(instruction.attribute(r"body=%?([\w.\-]+)") or "")
                total += body.total * (1 if trips is None else trips)
                iteration += body.iteration if trips is not None else body.total
            elif instruction.opcode == "conditional":
                costs = [self.of(branch) for branch in branches(instruction)]
                costliest = max(costs, key=lambda each: each.total.seconds)
                total, iteration = total + costliest.total, iteration + costliest.iteration
            elif instruction.opcode in ("call", "async-start"):
                called = self.of(instruction.attribute(_CALLED) or "")
                total, iteration = total + called.total, iteration + called.iteration
            else:
                total += self._instruction(computation, instruction)
        return Roofline(total, iteration)

    def _instruction(self, computation: Computation, instruction: Instruction) -> Cost:
        size, flops = self._moved(computation, instruction), self._flops_of(computation, instruction)
        seconds = max(size.bytes / self.bandwidth, flops / self.peak)
        return Cost(size.bytes, size.unsigned, flops, seconds)

    def _moved(self, computation: Computation, instruction: Instruction) -> _Size:
        opcode, operands = instruction.opcode, instruction.operands
        if opcode in _FREE or opcode == "async-done" or '"AllocateBuffer"' in instruction.rest:
            return _Size()
        if opcode == "fusion":
            called = instruction.attribute(_CALLED) or ""
            read = (self._reads(called, index) for index in range(len(operands)))
            return sum(read, _Size()) + self._writes(called)
        if opcode == "copy-start":  # its type holds both arrays
            return _size(instruction.type)
        if opcode == "copy-done":
            return _Size()
        if opcode.endswith("-start"):
            return self._types(computation, operands)
        if opcode.endswith("-done"):
            return _size(instruction.type)
        if opcode in ("slice", "dynamic-slice", "gather"):
            return _size(instruction.type) + _size(instruction.type) + self._types(computation, operands[1:])
        if opcode == "dynamic-update-slice":
            return self._types(computation, [operands[1], *operands[1:]])
        return self._types(computation, operands) + _size(instruction.type)

    def _types(self, computation: Computation, names: list[str]) -> _Size:
        return sum((_size(computation.instructions[name].type) for name in names), _Size())

    def _read_size(self, name: str, index: int) -> _Size:
        """What a fused computation reads of its parameter of this index."""
        computation = self.module.computations[name]
        parameter = next(
            each
            for each in computation.instructions.values()
            if each.opcode == "parameter" and each.rest.startswith(f"{index})")
        )
        whole, read = _size(parameter.type), self._uses(computation, parameter.name)
        return read if read.bytes < whole.bytes else whole

    def _uses(self, computation: Computation, name: str) -> _Size:
        """Sum over the instructions that use a value of what each reads of it."""
        total = _Size()
        for user in computation.instructions.values():
            for position, operand in enumerate(user.operands if user.opcode != "parameter" else ()):
                if operand != name:
                    continue
                if user.opcode in ("slice", "dynamic-slice", "gather") and position == 0:
                    total += _size(user.type)
                elif user.opcode == "bitcast" or _aliased(user) == position:
                    total += self._uses(computation, user.name)
                elif user.opcode == "fusion":
                    total += self._reads(user.attribute(_CALLED) or "", position)
                elif user.opcode not in ("dynamic-update-slice", "tuple") or position > 0:
                    total += _size(computation.instructions[name].type)
        return total

    def _written_size(self, name: str) -> _Size:
        """What a fused computation writes."""
        computation = self.module.computations[name]
        return self._written(computation, computation.instructions[computation.root])

    def _written(self, computation: Computation, instruction: Instruction) -> _Size:
        operands = [computation.instructions[each] for each in instruction.operands if each in computation.instructions]
        if instruction.opcode == "tuple":
            return sum((self._written(computation, each) for each in operands), _Size())
        if instruction.opcode == "bitcast":
            return self._written(computation, operands[0])
        if instruction.opcode == "dynamic-update-slice":
            return _size(operands[1].type)
        if instruction.opcode == "fusion":
            return self._writes(instruction.attribute(_CALLED) or "")
        return _size(instruction.type)

    def _computation_flops(self, name: str) -> float:
        computation = self.module.computations[name]
        return sum(self._flops_of(computation, each) for each in computation.instructions.values())

    def _flops_of(self, computation: Computation, instruction: Instruction) -> float:
        if instruction.opcode == "fusion":
            return self._flops(instruction.attribute(_CALLED) or "")
        if instruction.opcode == "custom-call":
            return float(instruction.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)') or 0)
        if instruction.opcode not in ("dot", "convolution"):
            return 0.0
        left, right = (_dims(computation.instructions[each].type) for each in instruction.operands)
        result = _dims(instruction.type)
        if instruction.opcode == "convolution":
            return 2.0 * _convolution_multiplies(instruction, left, right, result)
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        return 2.0 * _product(result) * _product([left[int(axis)] for axis in contracted.split(",") if axis])


def _aliased(instruction: Instruction) -> int | None:
    """Index of the operand whose memory the result of an instruction is, if it is."""
    index = instruction.attribute(r"output_to_operand_aliasing=\{\{\}: \((\d+), \{\}\)\}")
    return None if index is None else int(index)


def _dims(type_text: str) -> list[int]:
    """Shape of an array."""
    array = ARRAY.search(type_text)
    assert array is not None, type_text
    return [int(size.lstrip("<=")) for size in array.group(2).split(",") if size]


def _product(sizes: list[int]) -> float:
    return float(functools.reduce(lambda a, b: a * b, sizes, 1))


def _convolution_multiplies(instruction: Instruction, left: list[int], right: list[int], result: list[int]) -> float:
    """Multiply-adds of a convolution, as which XLA expresses every matrix multiplication on TPU."""
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.attribute(r"dim_labels=([\w>\-]+)") or "")
    assert labels is not None, instruction
    of_left, of_right, of_result = labels.groups()
    count = float(result[of_result.index("b")] * result[of_result.index("f")] * right[of_right.index("i")])
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    fields = dict(part.split("=") for part in window.split())
    for axis in range(len(of_left) - 2):
        size, stride, left_dilation, right_dilation = (
            int(fields[key].split("x")[axis]) if key in fields else 1
            for key in ("size", "stride", "lhs_dilate", "rhs_dilate")
        )
        low = int(fields["pad"].split("x")[axis].split("_")[0]) if "pad" in fields else 0
        length, outputs = left[of_left.index(str(axis))], result[of_result.index(str(axis))]
        end = (length - 1) * left_dilation
        positions = (
            at * stride + tap * right_dilation - low for at in range(outputs) for tap in range(size)
        )  # in the dilated input
        count *= sum(0 <= position <= end and position % left_dilation == 0 for position in positions)
    return count
