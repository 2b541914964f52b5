"""Sizes of the kernels' tiles: one table, fixed and committed, and nothing tuned at run time.

Tuning at run time would give different programs, and different last bits, to the hosts of one
job. The choice follows from the shapes alone. Figures behind it, H100, triton 3.6: of tiles of
16, 32 and 64 tokens with 2, 4 and 8 warps, 16 tokens were the fastest for routing at 128 and 256
experts.
"""

from typing import NamedTuple

# A program of the routing kernel holds about this many logits at a time, 16 a thread.
_LOGITS = 2048
_MAX_LOGITS = 8192
# Programs that fill the largest of today's GPUs several times over.
_ENOUGH_PROGRAMS = 1056


class RouteConfig(NamedTuple):
    """Tiles of the routing kernels.

    Attributes:
        tokens: tokens of a tile.
        tiles: tiles that a program works through.
        num_warps: warps a program.
    """

    tokens: int
    tiles: int
    num_warps: int


class PermuteConfig(NamedTuple):
    """Tiles of the kernels that move rows.

    Attributes:
        tokens: tokens of a tile.
        columns: columns of a tile.
        num_warps: warps a program.
    """

    tokens: int
    columns: int
    num_warps: int


class DualConfig(NamedTuple):
    """Tiles of the kernel of tilted moments.

    Attributes:
        examples: examples of a tile.
        tiles: tiles that a program works through.
        num_warps: warps a program.
    """

    examples: int
    tiles: int
    num_warps: int


def dual_config(examples: int, columns: int) -> DualConfig:
    """Tiles for the moments of so many examples with so many columns."""
    tile, warps = (128, 4) if columns <= 16 else (64, 8) if columns <= 32 else (32, 8)
    # half of `_ENOUGH_PROGRAMS`: each leaves sums that are read again
    tiles = max(1, -(-examples // (tile * _ENOUGH_PROGRAMS // 2)))
    return DualConfig(tile, tiles, warps)


def route_config(tokens: int, padded_experts: int) -> RouteConfig:
    """Tiles for routing `tokens` to a power of two of experts."""
    tile = min(64, max(8, _LOGITS // padded_experts), _power_of_two(tokens))
    warps = min(8, max(1, tile * padded_experts // (16 * 32)))
    tiles = min(8, max(1, tokens // (tile * _ENOUGH_PROGRAMS)))
    return RouteConfig(max(1, tile), 1 << (tiles.bit_length() - 1), warps)


def count_config(slots: int, padded_experts: int) -> RouteConfig:
    """Tiles for counting the slots of a plan whose experts are given."""
    tile = min(256, max(16, _MAX_LOGITS // padded_experts), _power_of_two(slots))
    warps = min(8, max(1, tile * padded_experts // (32 * 32)))
    tiles = min(16, max(1, slots // (tile * _ENOUGH_PROGRAMS)))
    return RouteConfig(max(1, tile), 1 << (tiles.bit_length() - 1), warps)


def permute_config(d: int, itemsize: int, *, operands: int = 1) -> PermuteConfig:
    """Tiles for moving rows of `d` numbers: about 8 KiB of all operands, 16 bytes an access."""
    elements = 8192 // (itemsize * operands)
    columns = min(_power_of_two(d), elements)
    # the last tile of a row should not be mostly empty
    while columns > 512 and -(-d // columns) * columns > 1.1 * d:
        columns //= 2
    tokens = max(1, min(32, elements // columns))
    warps = max(1, min(4, tokens * columns * itemsize // (32 * 16)))
    return PermuteConfig(tokens, columns, warps)


class MatmulConfig(NamedTuple):
    """Tiles of the kernels that multiply.

    Attributes:
        rows: rows of a tile of the result.
        columns: columns of a tile of the result.
        depth: terms of the sums that are in shared memory at a time.
        num_warps: warps a program.
        num_stages: how many depths are on their way at once.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


def matmul_config(rows: int, columns: int, itemsize: int) -> MatmulConfig:
    """Tiles for results of some `rows` by `columns`.

    Figures behind it, H100, triton 3.6, bfloat16: 128 x 256 x 64 with 8 warps and 3 to 4 stages
    was the fastest of seven at groups of 512 rows by 1024 columns and 8192 by 4096.
    """
    largest = (128, 256) if itemsize == 2 else (64, 64)
    height = min(largest[0], max(16, _power_of_two(rows)))
    width = min(largest[1], max(16, _power_of_two(columns)))
    warps = 8 if height * width >= 128 * 256 else 4
    return MatmulConfig(height, width, 64 if itemsize == 2 else 32, warps, 3)


def _power_of_two(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << max(0, n - 1).bit_length()
