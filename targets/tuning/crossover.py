"""Which kernel family is fastest: what `scripts/bench_crossover.py` measured, and how it stands for what it did not.

`crossover.json` holds GMAC/s of one core for pairs of widths (W2A4: weights of 2 bits, codes of 4), shapes and families
on several instruction sets, of one machine. A request gets the family whose figure is largest:

- *Instruction set.* A family's figure is that of the measured instruction set with the same features of those that the
  family uses (`_USES`); else of the one with most features among those that the target has as well. So popcounts of
  `x86-64-v4+vpopcntdq`, which was not measured, are those of the full set, and its dot products those of `x86-64-v4`.
- *Widths.* Those measured; else the least wide measured pair that holds both.
- *Shape.* The measured one that is nearest in the logarithms of its depth, output channels and pixels. With VNNI the
  dot products of 3x3 kernels are Winograd's: they stand for what Winograd serves, 1x1 kernels for the rest.

Where nothing was measured that a target runs, or no measured pair is wide enough, the order is by instructions a MAC:
look-ups for weights of up to 2 bits (1 where NEON has dot products, 4 in WebAssembly), then dot products, look-ups, bit
planes and plain loops. Signs times signs are counted.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.files import parse_record, read_json
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.target import Target, resolve

BITSERIAL, LOOKUP, DOT, GENERIC = "bitserial", "lookup", "dot", "generic"
FILE = Path(__file__).with_suffix(".json")

_USES = {
    BITSERIAL: {"popcnt", "ssse3", "avx2", "avx512bw", "vpopcntdq"},
    LOOKUP: {"ssse3", "avx2", "avx512bw", "vnni", "vbmi"},
    DOT: {"ssse3", "avx2", "avx512bw", "avxvnni", "vnni"},
    GENERIC: {"ssse3", "avx2", "avx512bw"},
}
_WINOGRAD = {"vnni", "avxvnni"}  # with which dot products of 3x3 kernels are Winograd's
_PAIR = re.compile(r"W([1-9][0-9]?)A([1-9][0-9]?)")
_COUNT = "([1-9][0-9]{0,5})"
_SHAPE = re.compile(f"{_COUNT}x{_COUNT}:{_COUNT}->{_COUNT}@{_COUNT}x{_COUNT}")

MOST_BYTES, MOST_BITS = 16 << 20, 32

Speed = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Speeds = Mapping[str, float]  # of families


class Crossover(BaseModel):
    """`gmacs[instruction set][W1A4][shape][family]`, what the instructions reach alone, and the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    machine: str
    gmacs: dict[str, dict[str, dict[str, dict[str, Speed]]]]
    limits: dict[str, dict[str, dict[str, Speed]]]


@cache
def table() -> Crossover:
    """The measurements that selection follows."""
    return read_table(FILE)


def read_table(path: Path) -> Crossover:
    """Read measurements; `InvalidModelError` that names the file and the entry where selection could not follow them.

    Every name is one that selection understands and every speed a positive number.
    """
    try:
        values = read_json(path, MOST_BYTES)
    except FileNotFoundError as error:
        raise InvalidModelError(f"{path}: no such file") from error
    try:
        found = parse_record(Crossover, values)
        _check(found)
    except (InvalidModelError, UnsupportedError) as error:
        raise InvalidModelError(f"{path}: {error}") from error
    return found


def _check(found: Crossover) -> None:
    for isa, pair in (each for table in (found.gmacs, found.limits) for each in _pairs(table)):
        if isa == "host":
            raise InvalidModelError("host: expected the name of a target; this one is another on every machine")
        resolve(isa)
        if pair is not None and not all(1 <= bits <= MOST_BITS for bits in _widths(pair)):
            raise InvalidModelError(f"{isa}: widths {pair!r}: expected 1..{MOST_BITS} bits")
    for isa, pairs in found.gmacs.items():
        for pair, shapes in pairs.items():
            for shape, speeds in shapes.items():
                _size(shape)
                _check_families(speeds, f"{isa} {pair} {shape}")
    for isa, peaks in found.limits.items():
        for pair, speeds in peaks.items():
            _check_families(speeds, f"{isa} {pair} limits")


def _pairs(table: Mapping[str, Mapping[str, object]]) -> Iterator[tuple[str, str | None]]:
    """Every instruction set of a table, alone and with each of its pairs of widths."""
    for isa, pairs in table.items():
        yield isa, None
        yield from ((isa, pair) for pair in pairs)


def _check_families(speeds: Speeds, where: str) -> None:
    strange = sorted(speeds.keys() - _USES.keys())
    if strange or not speeds:
        raise InvalidModelError(f"{where}: family {strange[:1]}: expected of {', '.join(_USES)}")


def fastest(
    target: Target, weight_bits: int, bits: int, shape: Convolution, families: Sequence[str], winograd: bool = False
) -> str:
    """Return which of `families`, all of them able, serves a product of these widths.

    `winograd` says whether dot products would be Winograd's.
    """
    if len(families) == 1:
        return families[0]
    widths = weight_bits, bits
    found = {family: speed for family in families if (speed := _speed(target, widths, shape, family, winograd))}
    if found:
        return max(found, key=lambda family: found[family])
    return next(family for family in _by_instructions(target, weight_bits, bits) if family in families)


def shape_name(shape: Convolution) -> str:
    """3x3:128->256@16x16: kernel, channels, output channels, output."""
    (kh, kw), size = shape.kernel, f"{shape.out_height}x{shape.out_width}"
    return f"{kh}x{kw}:{shape.channels}->{shape.out_channels}@{size}"


def _by_instructions(target: Target, weight_bits: int, bits: int) -> list[str]:
    if weight_bits == bits == 1:
        return [BITSERIAL, LOOKUP, DOT, GENERIC]
    looked_up = 4 if target.isa == "wasm32" else 1 if "dotprod" in target.features else 2  # bits of weights
    if weight_bits <= looked_up:
        return [LOOKUP, DOT, BITSERIAL, GENERIC]
    return [DOT, LOOKUP, BITSERIAL, GENERIC]


def _speed(target: Target, widths: tuple[int, int], shape: Convolution, family: str, winograd: bool) -> float | None:
    """The figure that stands for `family`; None if there is none."""
    measured = table().gmacs
    here = {name: _features(name) for name in measured if _isa(name) == target.isa}
    able = [name for name in here if here[name] <= target.features]
    alike = [name for name in here if _USES[family] & here[name] == _USES[family] & target.features]
    isa = max(alike or able, key=lambda name: len(here[name] & target.features), default=None)
    if isa is None:
        return None
    pairs = {_widths(name): shapes for name, shapes in measured[isa].items()}
    wide = [each for each in pairs if each[0] >= widths[0] and each[1] >= widths[1]]
    if not wide:
        return None
    shapes = {name: speeds for name, speeds in pairs[min(wide, key=sum)].items() if family in speeds}
    if family == DOT and _WINOGRAD & target.features:
        shapes = {name: speeds for name, speeds in shapes.items() if name.startswith("3x3:") == winograd} or shapes
    return shapes[_nearest(shape, shapes)][family] if shapes else None


def _nearest(shape: Convolution, names: Iterable[str]) -> str:
    own = _size(shape_name(shape))
    return min(names, key=lambda name: sum((a - b) ** 2 for a, b in zip(own, _size(name), strict=True)))


@cache
def _size(name: str) -> tuple[float, ...]:
    found = _SHAPE.fullmatch(name)
    if not found:
        raise InvalidModelError(f"{FILE.name}: shape {name!r:.40}: expected 3x3:CHANNELS->OUT@HEIGHTxWIDTH")
    kh, kw, channels, out_channels, height, width = (int(each) for each in found.groups())
    return math.log2(kh * kw * channels), math.log2(out_channels), math.log2(height * width)


def _features(name: str) -> frozenset[str]:
    return _measured(name).features


def _isa(name: str) -> str:
    return _measured(name).isa


@cache
def _measured(name: str) -> Target:
    try:
        return resolve(name)
    except UnsupportedError as error:
        raise InvalidModelError(str(error)) from None


def _widths(pair: str) -> tuple[int, int]:
    found = _PAIR.fullmatch(pair)
    if not found:
        raise InvalidModelError(f"widths {pair!r}: expected W<bits>A<bits>")
    return int(found[1]), int(found[2])
