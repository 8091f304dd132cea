"""What one core of this machine can do: a kernel family's instructions in a loop whose data stay in registers and L1.

A layer's speed divided by its family's limit is the fraction that tiling, memory, packing and epilogue leave.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from edgedm.errors import UnsupportedError
from edgedm.targets import Target
from edgedm.targets.kernels import winograd
from edgedm.targets.kernels.builder import Registers, block, build, let, load, loop, reinterpret, splat, store
from edgedm.targets.kernels.lookup import STEP_BYTES, Reader
from edgedm.targets.kernels.product_families import able
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import TensorSpec
from edgedm.targets.kernels.tiles import Window
from edgedm.targets.tuning import tiling
from edgedm.targets.tuning.crossover import BITSERIAL, DOT, GENERIC, LOOKUP, fastest

_CYCLE = 64  # different inputs that the loop meets: 64 steps of any kind stay in L1
_UNROLLED = 4  # steps written out in the loop's body
_ROUNDS = 64  # times round: one call takes tens of microseconds
_LARGE = Convolution(64, 64, 256, 256)  # a shape that gets the full register tile


@dataclass(frozen=True)
class Limit:
    """`run` executes `macs` multiply-accumulates of one kernel family."""

    run: Callable[[], object]
    macs: int


PAIRS = {"bconv": (1, 1), "wconv": (1, 4), "qconv": (4, 4)}
"""Bits of the weights and of the codes of the kinds of layers that multiply codes."""


def limit(kind: str, target: Target, serves: str | None = None) -> Limit:
    """Return the limit of layers of `kind`.

    They are bconv (xor and population count, or look-ups of signs), wconv (look-ups), qconv (integer dot products of
    4-bit codes), each that of the kernel family that `serves` the layer (by default the fastest of a large one), and
    fconv (floats). Winograd's dot products count as the multiply-accumulates of the convolution that they make.
    Raises UnsupportedError where plain loops serve the kind.
    """
    if kind == "fconv":
        return _timed(target, _floats(target))
    widths = PAIRS[kind]
    if serves is None:
        return family_limit(fastest(target, *widths, _LARGE, able(target, *widths)), target, *widths)
    if serves.startswith("winograd"):
        dots = family_limit(DOT, target, *widths)
        return Limit(dots.run, round(dots.macs / winograd.PRODUCTS))
    family = next(each for each in (BITSERIAL, LOOKUP, DOT, GENERIC) if serves.startswith(each))
    return family_limit(family, target, *widths)


def family_limit(family: str, target: Target, weight_bits: int, bits: int) -> Limit:
    """Return the limit of a family of products of codes of these widths; UnsupportedError for plain loops."""
    if family == BITSERIAL:
        return _timed(target, _popcounts(target), weight_bits * bits)
    if family == LOOKUP:
        reader = tiling.lookup(target, _LARGE, bits)
        if reader is not None:
            return _timed(target, _lookups(reader), weight_bits)
    if family == DOT:
        return _timed(target, _dots(target, weight_bits, bits))
    raise UnsupportedError(f"limit: {target.name} has no instruction for {family} products of W{weight_bits}A{bits}")


def _timed(target: Target, loop: "_Loop", passes: int = 1) -> Limit:
    """A loop whose multiply-accumulates take `passes`, one a pair of planes."""
    body, parameters, macs = loop
    function = build("limit", parameters, body)
    run = tvm.compile(tvm.IRModule({"limit": function}), target.tvm())["limit"]
    tensors = [tvm.runtime.tensor(np.ones(spec.shape, spec.dtype)) for _, spec in parameters]
    return Limit(lambda: run(*tensors), macs // passes)


_Loop = tuple[Callable[..., None], list[tuple[str, TensorSpec]], int]


def _popcounts(target: Target) -> _Loop:
    tile = tiling.bitserial(target, _LARGE)
    lanes, vectors = tile.lanes, 2 * tile.groups
    macs = _CYCLE * _ROUNDS * tile.pixels * vectors * lanes * 64
    body = _products("uint64", lanes, tile.pixels, vectors, lambda acc, x, w: acc + tirx.popcount(splat(x, lanes) ^ w))
    return body, _parameters("uint64", lanes, tile.pixels, vectors), macs


def _floats(target: Target) -> _Loop:
    tile = tiling.float_conv(target, _LARGE)
    lanes, vectors = tile.lanes, tile.groups
    macs = _CYCLE * _ROUNDS * tile.pixels * vectors * lanes
    body = _products("float32", lanes, tile.pixels, vectors, lambda acc, x, w: acc + splat(x, lanes) * w)
    return body, _parameters("float32", lanes, tile.pixels, vectors), macs


def _dots(target: Target, weight_bits: int, bits: int) -> _Loop:
    """The tile's products alone: weights stand unpacked in registers, as if nibbles cost nothing."""
    nibbles = weight_bits <= 4
    tile = tiling.dot(target, _LARGE.out_height * _LARGE.out_width, bits, weight_bits, nibbles, signed=weight_bits == 1)
    if tile is None:
        raise UnsupportedError(f"limit: {target.name} has no instruction that multiplies bytes")
    shape = tile.pixels, tile.groups
    lanes = tile.lanes * tile.sums_a_lane

    def step(acc: Any, x: Any, w: Any) -> Any:
        return tile.add(acc, x, reinterpret(w, f"int8x{tile.bytes}"))

    body = _products(f"int{32 // tile.sums_a_lane}", lanes, *shape, step, weight_lanes=tile.lanes)
    sizes = {"x": _CYCLE * tile.pixels, "weight": tile.groups * tile.lanes}
    parameters = [(name, TensorSpec((size,), "int32")) for name, size in sizes.items()]
    parameters.append(("y", TensorSpec((math.prod(shape) * lanes,), f"int{32 // tile.sums_a_lane}")))
    return body, parameters, _CYCLE * _ROUNDS * math.prod(shape) * tile.bytes


def _products(
    dtype: str,
    lanes: int,
    pixels: int,
    vectors: int,
    step: Callable[[Any, Any, Any], Any],
    weight_lanes: int | None = None,
) -> Callable[..., None]:
    """Body of acc[p][v] = step(acc[p][v], x[k][p], w[v]) over k, round after round."""
    weight_lanes = weight_lanes or lanes
    slots = [(p, v) for p in range(pixels) for v in range(vectors)]

    def body(x: Any, weight: Any, y: Any) -> None:
        acc = Registers(len(slots), lanes, dtype)
        weights = [let(load(weight, v * weight_lanes, weight_lanes)) for v in range(vectors)]
        with loop(_ROUNDS), loop(_CYCLE // _UNROLLED) as turn:
            for k in range(_UNROLLED):
                for index, (p, v) in enumerate(slots):
                    at = (turn * _UNROLLED + k) * pixels + p  # no input twice: LLVM would share the work
                    acc[index] = step(acc[index], load(x, at), weights[v])
        for index in range(len(slots)):
            store(y, acc[index], index * lanes, lanes)

    return body


def _parameters(dtype: str, lanes: int, pixels: int, vectors: int) -> list[tuple[str, TensorSpec]]:
    sizes = {"x": _CYCLE * pixels, "weight": vectors * lanes, "y": pixels * vectors * lanes}
    return [(name, TensorSpec((size,), dtype)) for name, size in sizes.items()]


def _lookups(reader: Reader) -> _Loop:
    steps = _CYCLE
    slots = reader.pixels * reader.groups
    pixels = [(p, 0) for p in range(reader.pixels)]

    def body(tables: Any, weight: Any, y: Any) -> None:
        with loop(_ROUNDS) as turn, block():
            window = Window(1, steps, pixels, lambda pixel, i: pixel[0] + turn % 2)
            sums = reader.accumulate(weight, tables, window, 0, reader.groups)
            for slot in range(slots):
                for number, vector in enumerate(sums(slot)):
                    at = slot * reader.block + number * reader.lanes
                    store(y, load(y, at, reader.lanes) + vector, at, reader.lanes)

    weight = reader.pack(np.zeros((reader.groups * reader.block, 1, 1, 2 * steps), np.uint8), 16 * steps)
    parameters = [
        ("tables", TensorSpec(((steps + reader.pixels + 1) * STEP_BYTES,), "int8")),
        ("weight", TensorSpec((math.prod(weight.shape),), "uint8")),
        ("y", TensorSpec((slots * reader.block,), "int32")),
    ]
    return body, parameters, _ROUNDS * steps * 16 * slots * reader.block
