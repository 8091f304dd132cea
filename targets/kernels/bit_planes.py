"""Products of codes by counting bits, plane by plane.

The codes a and the weights v are planes of bits: with a = sum of 2^i a_i and v = sum of 2^j v_j,

    P = sum over i, j of 2^(i + j) popcount(a_i & v_j),

where the highest plane of signed codes counts negatively, as two's complement has it. Planes lie one after the other,
the image's as uint64[plane][pixel][word], the weights' as `bitserial` has signs. A tile goes through the pairs of
planes from the highest power of two down and doubles its sums in between, so that they need no registers of their own.
Padding is the code 0 or za, bit by bit. Sums, zero points and loop order: see `code_product`.

Limit: that of `bitserial` over the number of pairs of planes; 16 of them for W4A4, so dot products or look-ups are
faster unless there are few: `targets/tuning/crossover.json` says where.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from edgedm.targets.kernels import code_product
from edgedm.targets.kernels.bitserial import PARALLEL_MACS, WORD_BITS, Tile, merge, pack_weight
from edgedm.targets.kernels.builder import (
    Buffer,
    Expr,
    Registers,
    block,
    cast,
    const,
    in_lanes,
    let,
    load,
    local,
    loop,
    mask_bits,
    reinterpret,
    splat,
    store,
)
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.quant_operands import Operands
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Array, TensorSpec
from edgedm.targets.kernels.tiles import Window


def draft(shape: Convolution, operands: Operands, tile: Tile, vector_bytes: int) -> Draft:
    """Return the kernel for codes uint8[..., C], or int8[..., C] of binary weights."""
    return code_product.draft(shape, operands, _Form(shape, operands, tile, vector_bytes))


@dataclass(frozen=True)
class _Form:
    """See `code_product.Form`. `vector_bytes` codes at a time are cut into planes."""

    shape: Convolution
    operands: Operands
    tile: Tile
    vector_bytes: int
    offset = 0
    image_offset = 0
    bias = 0
    needs_copy = True
    parallel_macs = PARALLEL_MACS >> 2  # a product of codes is one of several planes: about 14 us of one core

    @property
    def name(self) -> str:
        tile, operands = self.tile, self.operands
        return f"bitserial-planes {operands.bits}x{operands.weight_bits} {tile.lanes}x64 {tile.pixels}x{tile.groups}"

    @property
    def block(self) -> int:
        return self.tile.block

    @property
    def pixels(self) -> int:
        return self.tile.pixels

    @property
    def groups(self) -> int:
        return self.tile.groups

    @property
    def lanes(self) -> int:
        return self.tile.block

    @property
    def steps(self) -> int:
        return -(-self.shape.channels // WORD_BITS)

    @property
    def pitch(self) -> int:
        return self.steps

    @property
    def _plane(self) -> int:
        """Words of a plane of the image."""
        height, width = code_product.image_size(self.shape)
        return height * width * self.steps

    def image(self, height: int, width: int) -> TensorSpec:
        return TensorSpec((self.operands.bits, height, width, self.steps), "uint64")

    def view(self, codes: Buffer) -> Buffer:
        raise AssertionError("codes are no planes")

    def pack(self, weight: Array) -> Array:
        """The planes one after the other, the lowest first."""
        padded = np.pad(weight, [(0, 0), (0, 0), (0, -weight.shape[2] % WORD_BITS)])
        planes = [np.packbits(padded >> j & 1, axis=-1, bitorder="little") for j in range(self.operands.weight_bits)]
        return np.concatenate([pack_weight(plane, self.tile.lanes) for plane in planes])

    def stage(self, codes: Buffer, source: Expr, image: Buffer | None, sums: Buffer | None, pixel: Expr) -> None:
        planes, channels, size = self.operands.bits, self.shape.channels, self.vector_bytes
        with block():
            total = local(1, "int32")
            store(total, const(0, "int32"), 0)
            words = local(planes, "uint64")

            def cut(word: Expr, first: Expr, count: int) -> None:
                """Add `count` codes to the planes of word `word`, from bit `first` on."""
                vector = let(load(codes, source * channels + word * WORD_BITS + first, count))
                for i in range(planes):
                    kind = "int8" if self.operands.signed else "uint8"
                    chosen = (vector & const(1 << i, kind, count)) != const(0, kind, count)
                    bits = cast(mask_bits(chosen, count) if count > 1 else chosen, "uint64")
                    store(words, load(words, i) | (bits << cast(first, "uint64")), i)

            def finish(word: Expr, count: int) -> None:
                for i in range(planes):
                    store(words, const(0, "uint64"), i)
                in_lanes(count, size, lambda first, lanes: cut(word, first, lanes))
                for i in range(planes):
                    bits = let(load(words, i))
                    store(image, bits, i * self._plane + pixel * self.steps + word)
                    worth = cast(tirx.popcount(bits), "int32") * self._power(i, 0)
                    store(total, load(total, 0) + worth, 0)

            whole, rest = divmod(channels, WORD_BITS)
            if whole:
                with loop(whole) as word:
                    finish(word, WORD_BITS)
            if rest:
                finish(whole, rest)
            if sums is not None:
                store(sums, load(total, 0), pixel)

    def border(self, zero: Expr | None, image: Buffer, pixel: Expr) -> None:
        for i in range(self.operands.bits):
            bits = const(0, "uint64")
            if zero is not None:  # 0 or all ones; missing channels meet no set bit of a weight
                bit = cast((zero >> const(i, "int32")) & const(1, "int32"), "int64")
                bits = reinterpret(const(0, "int64") - bit, "uint64")  # unsigned, it may not wrap around
            with loop(self.steps) as word:
                store(image, bits, i * self._plane + pixel * self.steps + word)

    def accumulate(
        self, weight: Buffer, image: Buffer, window: Window, index: Expr, together: int
    ) -> Callable[[int], Sequence[Expr]]:
        lanes, slots = self.tile.lanes, 2 * len(window.pixels) * together
        acc = Registers(slots, lanes, "int64")
        pairs = [(i, j) for i in range(self.operands.bits) for j in range(self.operands.weight_bits)]
        pairs.sort(key=sum, reverse=True)
        for number, (i, j) in enumerate(pairs):
            doublings = sum(pairs[number - 1]) - i - j if number else 0
            for slot in range(slots if doublings else 0):
                acc[slot] = acc[slot] << const(doublings, "int64", lanes)
            self._count(weight, image, window, index, together, acc, (i, j))

        def sums(slot: int) -> list[Expr]:
            even, odd = (reinterpret(acc[2 * slot + half], f"uint64x{lanes}") for half in range(2))
            return [merge(even, odd, lanes, self.operands.signed)]

        return sums

    def _count(
        self,
        weight: Buffer,
        image: Buffer,
        window: Window,
        index: Expr,
        together: int,
        acc: Registers,
        pair: tuple[int, int],
    ) -> None:
        """Add the products of plane i of the image and plane j of the weights to all sums."""
        (i, j), lanes, size = pair, self.tile.lanes, self.tile.block
        first = index + j * -(-self.shape.out_channels // size)
        with loop(window.rows) as row, loop(window.row_steps) as k:
            weights = [
                let(
                    load(
                        weight, (((first + g) * window.rows + row) * window.row_steps + k) * size + half * lanes, lanes
                    )
                )
                for g in range(together)
                for half in range(2)
            ]
            for p, pixel in enumerate(window.pixels):
                x = let(load(image, i * self._plane + window.at(pixel, row) + k))
                for v, each in enumerate(weights):
                    slot = p * len(weights) + v
                    count = reinterpret(tirx.popcount(splat(x, lanes) & each), f"int64x{lanes}")
                    acc[slot] = acc[slot] + count if self._power(i, j) > 0 else acc[slot] - count

    def _power(self, i: int, j: int) -> int:
        """What a set bit of planes i and j is worth."""
        return -(1 << i + j) if self.operands.signed and i == self.operands.bits - 1 else 1 << i + j
