"""Collectives of an optimized HLO module, parsed from XLA's text form. Does not import jax.

A module is the program of one device, so every figure is for one device and one execution.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALL = re.compile(r"([\w\-]+)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]")
_BITS = re.compile(r"[a-z]+(\d+)")
_COLLECTIVE = re.compile(rf"({'|'.join(KINDS)})(-start)?")
_NAME = re.compile(r"%([\w.\-]+)")


class Instruction(NamedTuple):
    """One line; `rest` is the text after the opening parenthesis of the opcode."""

    name: str
    type: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return _NAME.findall(self.rest[: _closing(self.rest, 1)])

    def attribute(self, pattern: str) -> str | None:
        """First group of a pattern in the text after the operands."""
        found = re.search(pattern, self.rest[_closing(self.rest, 1) :])
        return found and found.group(1)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions in the order of execution."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective and how often a device executes it.

    bytes: per execution, of the unsharded array: the result of an all-gather, the operand of a reduce-scatter,
      all-reduce, all-to-all or collective-permute.
    sent: bytes that a device sends per execution. With n devices: all-gather, reduce-scatter and all-to-all
      bytes · (n−1)/n, all-reduce twice that (ring algorithms, Patarasuk and Yuan 2009), collective-permute all bytes.
    """

    kind: str
    times: int
    devices: int  # of a group
    bytes: float
    sent: float
    source: str  # op_name of the JAX operation that it implements
    repeats: bool = False  # in an unbounded loop, once per iteration


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Collectives of a program. `unbounded` loops count as one iteration, so that the figures are lower bounds."""

    found: tuple[Collective, ...]
    unbounded: tuple[str, ...]

    def total(self, kind: str | None = None) -> tuple[int, float, float]:
        """Number of executions, their bytes, and the bytes that a device sends, of one kind or of all."""
        chosen = [each for each in self.found if kind in (None, each.kind)]
        times = sum(each.times for each in chosen)
        return times, sum(each.times * each.bytes for each in chosen), sum(each.times * each.sent for each in chosen)

    def sent_per_iteration(self) -> float:
        """Bytes that a device sends in one iteration of the unbounded loops."""
        return sum(each.times * each.sent for each in self.found if each.repeats)


def _closing(text: str, depth: int = 0) -> int:
    """Index of the parenthesis that closes the outermost one; `depth` of them are open before the text."""
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and letter == ")":
            return index
    return len(text)


def array_bytes(type_text: str) -> float:
    """Bytes of an array type, or of all arrays of a tuple type, without padding and layout."""
    total = 0.0
    for kind, dims in ARRAY.findall(re.sub(r"\{[^}]*\}", "", type_text)):
        bits = _BITS.match(kind)
        width = 8 if kind == "pred" else int(bits.group(1)) if bits else 0
        total += width / 8 * math.prod(int(size.lstrip("<=")) for size in dims.split(",") if size)
    return total


def group_size(instruction: Instruction, default: int) -> int:
    """Devices in a group of a collective, from any of the three notations; `default` if all devices form one group."""
    rest = instruction.rest
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(iota.group(2))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:[^{]*)\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return listed.group(1).count(",") + 1
    return default


# On TPU an asynchronous collective appears as a copy in each fusion that is executed during it (those in loops too),
# from the fusion with AsyncCollectiveStart to the one with AsyncCollectiveDone. Only the first copy counts. This counts
# the collectives in flight by _identity, which alone is not unique: collectives of two loops may share it.
Running = Counter[tuple[str, str | None, str]]


class Module:
    """A parsed module."""

    def __init__(self, text: str):
        head = text.split("\n", 1)[0]
        sizes = [int(size) for size in re.findall(r"(?:replica_count|num_partitions)=(\d+)", head)]
        self.devices = math.prod(sizes)
        self.computations: dict[str, Computation] = {}
        for computation, is_entry in _computations(text):
            self.computations[computation.name] = computation
            if is_entry:
                self.entry = computation.name

    def collectives(self) -> Collectives:
        """The collectives that one execution of the program runs, with the trip counts of loops."""
        unbounded: list[str] = []
        found = tuple(self._walk(self.entry, 1, unbounded, Running()))
        return Collectives(found, tuple(dict.fromkeys(unbounded)))

    def _walk(
        self, name: str, times: int, unbounded: list[str], running: Running, fused: bool = False
    ) -> Iterator[Collective]:
        """Collectives of a computation; `fused`: of a fusion, which may hold copies of those `running`."""
        computation = self.computations[name]
        continues = fused and not _has_marker(computation, "AsyncCollectiveStart")
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if collective := _COLLECTIVE.fullmatch(opcode):
                if not (continues and running[_identity(instruction)]):
                    yield from self._collective(computation, instruction, collective.group(1), times)
            elif opcode == "while":
                trips = trip_count(self, computation, instruction)
                if trips is None:
                    unbounded.append(instruction.attribute(r'op_name="([^"]*)"') or instruction.name)
                body = instruction.attribute(r"body=%?([\w.\-]+)")
                assert body is not None, instruction
                for each in self._walk(body, times * (1 if trips is None else trips), unbounded, running):
                    yield each if trips is not None else dataclasses.replace(each, repeats=True)
            elif opcode == "conditional":
                choices = [list(self._walk(each, times, unbounded, running)) for each in branches(instruction)]
                yield from max(choices, key=lambda choice: sum(each.times * each.sent for each in choice))
            elif opcode in ("fusion", "call", "async-start"):
                called = instruction.attribute(r"(?:calls|to_apply)=%?([\w.\-]+)")
                if called in self.computations:
                    yield from self._walk(called, times, unbounded, running, opcode == "fusion")
                    _follow(running, self.computations[called])

    def _collective(
        self, computation: Computation, instruction: Instruction, kind: str, times: int
    ) -> Iterator[Collective]:
        devices = group_size(instruction, self.devices)
        if devices == 1 or times == 0:
            return
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # on TPU it is an all-reduce of whose result each device takes a slice
        arrays = [computation.instructions[name].type for name in instruction.operands]
        size = sum(array_bytes(array) for array in arrays) * (devices if kind == "all-gather" else 1)
        hops = {"all-reduce": 2 * (devices - 1) / devices, "collective-permute": 1.0}.get(kind, (devices - 1) / devices)
        source = instruction.attribute(r'op_name="([^"]*)"') or computation.name
        yield Collective(kind, times, devices, size, size * hops, source)


def _computations(text: str) -> Iterator[tuple[Computation, bool]]:
    name, entry, root, instructions = "", False, "", dict[str, Instruction]()
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            entry, name = bool(header.group(1)), header.group(2)
            instructions, root = {}, ""
        elif line.startswith("}") and name:
            yield Computation(name, instructions, root), entry
            name = ""
        elif name and (found := _INSTRUCTION.match(line)):
            is_root, label, body = found.groups()
            split = _closing(body) + 1 if body.startswith("(") else body.index(" ")
            call = _CALL.match(body[split:].lstrip())
            if call is not None:
                instructions[label] = Instruction(label, body[:split], call.group(1), call.group(2))
            root = label if is_root else root


def _has_marker(computation: Computation, marker: str) -> bool:
    return any(f'"{marker}"' in each.rest for each in computation.instructions.values())


def _follow(running: Running, called: Computation) -> None:
    """Count the collectives that a fusion starts, and discount those that it ends."""
    change = _has_marker(called, "AsyncCollectiveStart") - _has_marker(called, "AsyncCollectiveDone")
    for instruction in called.instructions.values():
        if change and _COLLECTIVE.fullmatch(instruction.opcode):
            running[_identity(instruction)] += change


def _identity(instruction: Instruction) -> tuple[str, str | None, str]:
    """What the copies of one collective have in common: opcode, channel, and type without layout."""
    return instruction.opcode, instruction.attribute(r"channel_id=(\d+)"), re.sub(r"\{[^}]*\}", "", instruction.type)


def branches(instruction: Instruction) -> Sequence[str]:
    listed = instruction.attribute(r"branch_computations=\{([^}]*)\}")
    return _NAME.findall(listed or instruction.attribute(r"(true_computation=.*?, false_computation=%[\w.\-]+)") or "")


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Iterations of a loop, from XLA's annotation or from a counter that is compared with a constant; None if there is
    neither, as in a loop whose length depends on data."""
    if annotated := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(annotated)
    condition, body = (
        module.computations[loop.attribute(rf"{name}=%?([\w.\-]+)") or ""] for name in ("condition", "body")
    )
    test = condition.instructions[condition.root]
    if test.opcode != "compare" or test.attribute(r"direction=(\w+)") != "LT":
        return None
    counter, bound = test.operands
    end, position = _constant(condition, bound), _element(condition, counter)
    start_tuple = computation.instructions[loop.operands[0]]
    following = body.instructions[body.root]
    if end is None or position is None or start_tuple.opcode != "tuple" or following.opcode != "tuple":
        return None
    start, step = _constant(computation, start_tuple.operands[position]), _step(body, following.operands[position])
    if start is None or not step:
        return None
    return max(0, -(-(end - start) // step))


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction of which a value is a copy."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "bitcast", "convert", "reshape"):
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _constant(computation: Computation, name: str) -> int | None:
    instruction = _source(computation, name)
    value = instruction.rest.split(")")[0]
    return int(value) if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", value) else None


def _element(computation: Computation, name: str) -> int | None:
    """Index of the element of the computation's parameter that a value is."""
    instruction = _source(computation, name)
    index = instruction.attribute(r"index=(\d+)") if instruction.opcode == "get-tuple-element" else None
    return None if index is None else int(index)


def _step(body: Computation, name: str) -> int | None:
    """The constant increment of a counter."""
    addition = _source(body, name)
    if addition.opcode != "add":
        return None
    return next((value for each in addition.operands if (value := _constant(body, each))), None)


def read_collectives(text: str) -> Collectives:
    """The collectives of a module's text."""
    return Module(text).collectives()
