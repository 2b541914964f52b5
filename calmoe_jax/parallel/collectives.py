"""The collectives of a compiled program, read from its text: operation, size, axes, how often."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

_KINDS = (
    "all-reduce", "all-gather", "all-to-all", "ragged-all-to-all", "reduce-scatter",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
_OPERATION = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(_KINDS)})(?P<start>-start)?\(")
# Between slices TPUs exchange through their hosts: a send, whose attributes say what comes of it.
_SEND = re.compile(r"= (?P<result>.*?) send\(.*_xla_megascale_transfer_type=\"(?P<kind>\w+)\"")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+(?:e\w+)?)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"^\s*%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_ROOT = re.compile(r"^\s*ROOT .* compare\([^,]*, %?([\w.\-]+)\), direction=LT")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """Collectives of one kind, size and place.

    Attributes:
        kind: operation, such as `"all-reduce"`.
        axes: axes of the mesh that it goes over, perhaps over a part of them at a time.
        group_size: number of devices that exchange.
        num_bytes: size of the whole value on one device: what a reduction gives or takes, what an
            all-gather gives, what an all-to-all sends and gets.
        times: how often a step runs it; loops of unknown length count once.
        far: whether it goes from slice to slice.
        origin: operation of the source it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    num_bytes: int
    times: int
    far: bool
    origin: str

    @property
    def bytes_sent(self) -> float:
        """Bytes that a device sends at least in a step: an optimal algorithm's."""
        share = (self.group_size - 1) / max(self.group_size, 1)
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.num_bytes * self.times


def collectives_of(
    text: str, axis_sizes: Mapping[str, int], *, slices: int = 1
) -> list[Collective]:
    """Reads the collectives of a compiled program.

    Args:
        text: the program, as from `compiled.as_text()`.
        axis_sizes: the mesh's axes in order, and their sizes; slices lie along the first.
        slices: number of slices (or hosts) that the devices are in, one after the other.

    Returns:
        The collectives, the largest traffic first; equal ones are added up. Groups of one device
        are left out.

    Example:
        >>> collectives_of('''
        ... ENTRY main () -> f32[8] {
        ...   r = f32[8]{0} all-reduce(%x), replica_groups=[1,2]<=[2], to_apply=%add
        ... }''', {"data": 2})[0][:4]
        ('all-reduce', ('data',), 2, 32)
    """
    times, by_axes = _times(text), _groups_by_axes(axis_sizes)
    devices = math.prod(axis_sizes.values())
    found: dict[tuple[str, tuple[str, ...], int, int, bool, str], int] = {}
    for computation, line in _lines(text):
        if not times.get(computation):
            continue
        name = _OP_NAME.search(line)
        origin = name[1].rpartition("/")[2] if name else ""
        if sent := _SEND.search(line):
            kind, whole = sent["kind"].lower().replace("_", "-"), _size(*_ARRAY.findall(line)[0])
            key = kind, tuple(axis_sizes)[:1], slices, whole, True, origin
            found[key] = found.get(key, 0) + times[computation]
            continue
        match = _OPERATION.search(line)
        if not match:
            continue
        kind, groups = match["kind"], _groups(line, devices)
        size = max(map(len, groups))
        if size == 1:
            continue
        far = any(len({n * slices // devices for n in group}) > 1 for group in groups)
        whole = _num_bytes(match["result"], kind, bool(match["start"]))
        if kind == "reduce-scatter":
            whole *= size
        key = kind, _axes(groups, by_axes), size, whole, far, origin
        found[key] = found.get(key, 0) + times[computation]
    result = [Collective(*k[:4], times=n, far=k[4], origin=k[5]) for k, n in found.items()]
    return sorted(result, key=lambda one: -one.bytes_sent)


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Name of the computation and text of each instruction."""
    computation = ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            computation = head["name"]
        elif "=" in line:
            yield computation, line


def _times(text: str) -> dict[str, int]:
    """How often each computation runs when the program runs once."""
    calls: dict[str, list[tuple[str, int]]] = {}
    limits = _limits(text)
    for computation, line in _lines(text):
        number = 1
        if " while(" in line:
            trips, condition = _TRIPS.search(line), _CONDITION.search(line)
            number = limits.get(condition[1], 1) if condition else 1
            number = int(trips[1]) if trips else number
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [each.strip().lstrip("%") for each in branches.split(",")]
        calls.setdefault(computation, []).extend((name, number) for name in called)
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    times: dict[str, int] = {}

    def visit(name: str, number: int) -> None:
        times[name] = times.get(name, 0) + number
        for called, trips in calls.get(name, ()):
            visit(called, number * trips)

    if entry:
        visit(entry[1], 1)
    return times


def _limits(text: str) -> dict[str, int]:
    """Numbers below which a counter has to be, by the computations that say so.

    Where the compiler does not note how often a loop runs, its counter, which `scan` begins at 0,
    is compared with that number.
    """
    constants: dict[tuple[str, str], int] = {}
    limits: dict[str, int] = {}
    for computation, line in _lines(text):
        if constant := _CONSTANT.match(line):
            constants[computation, constant[1]] = int(constant[2])
        elif root := _ROOT.match(line):
            if (computation, root[1]) in constants:
                limits[computation] = constants[computation, root[1]]
    return limits


def _num_bytes(result: str, kind: str, start: bool) -> int:
    sizes = [_size(dtype, shape) for dtype, shape in _ARRAY.findall(result)]
    if start and kind in ("all-gather", "collective-permute", "reduce-scatter"):
        # operands come first, then results; a permute has two counters at the end
        sizes = sizes[1:2] if kind == "collective-permute" else sizes[len(sizes) // 2 :]
    return sum(sizes)


def _size(dtype: str, shape: str) -> int:
    number = math.prod(int(n) for n in shape.split(",") if n)
    if dtype == "pred":
        return number
    bits = re.search(r"\d+", dtype)
    return number * int(bits[0] if bits else 8) // 8


_Groups = frozenset[frozenset[int]]


def _groups_by_axes(axis_sizes: Mapping[str, int]) -> dict[tuple[str, ...], _Groups]:
    """The groups of devices that lie along some axes, for all choices, the fewest axes first."""
    names, shape = list(axis_sizes), list(axis_sizes.values())
    chosen = itertools.chain.from_iterable(
        itertools.combinations(names, count) for count in range(len(names) + 1)
    )
    return {each: _groups_along(shape, [name in each for name in names]) for each in chosen}


def _groups_along(shape: list[int], chosen: list[bool]) -> _Groups:
    """The groups of devices of a mesh that lie along some of its axes."""
    inside = [i for i, one in enumerate(chosen) if one]
    outside = [i for i, one in enumerate(chosen) if not one]
    numbers = np.arange(math.prod(shape)).reshape(shape).transpose(*outside, *inside)
    return _rows(numbers.reshape(-1, math.prod(shape[i] for i in inside)))


def _rows(rows: np.ndarray) -> _Groups:
    return frozenset(frozenset(row.tolist()) for row in rows)


def _axes(groups: _Groups, by_axes: Mapping[tuple[str, ...], _Groups]) -> tuple[str, ...]:
    """The fewest axes within whose groups all groups lie."""
    for axes, along in by_axes.items():
        place = {device: number for number, group in enumerate(along) for device in group}
        if all(len({place[device] for device in group}) == 1 for group in groups):
            return axes
    return ()


def _groups(line: str, devices: int) -> _Groups:
    """The groups of devices that a collective goes over; one of all where it does not say."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        mesh = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        over = re.findall(r"'([^']+)'", named[2])
        return _groups_along(list(mesh.values()), [name in over for name in mesh])
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        source = [int(n) for n in iota[3].split(",")]
        numbers = np.arange(math.prod(source)).reshape(source)
        if iota[4]:
            numbers = numbers.transpose([int(n) for n in iota[4].split(",")])
        return _rows(numbers.reshape(int(iota[1]), int(iota[2])))
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line)
    if listed:
        found = re.findall(r"\{([\d,]+)\}", listed[1])
        return frozenset(frozenset(int(n) for n in each.split(",")) for each in found)
    return frozenset([frozenset(range(devices))])
