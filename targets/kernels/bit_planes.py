"""Products of codes by counting bits, plane by plane.

The codes a and the weights v are planes of bits: with a = sum of 2^i a_i and v = sum of 2^j v_j,

    P = sum over i, j of 2^(i + j) popcount(a_i & v_j),

where the highest plane of signed codes counts negatively, as two's complement has it. Planes lie one after the other,
the image's as uint64[plane][pixel][word], the weights' as `bitserial` has signs. A tile goes through few pairs
of planes from the highest power of two down and doubles its sums in between, so that they need no registers of their
own; through more it goes image plane by image plane, so that there is one piece of code for each plane of the weights.
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
    hold,
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

MOST_UNROLLED = 4  # pairs of planes; of more the image's are a loop, as each pair is a whole product in code
GATHERED = 8  # codes that are cut into planes by shifts, in a 64-bit word


def draft(shape: Convolution, operands: Operands, tile: Tile, together: int) -> Draft:
    """Return the kernel for codes uint8[..., C], or int8[..., C] of binary weights.

    `together` codes at a time are cut into planes: by their masks, or `GATHERED` by shifts, which need no vectors.
    """
    return code_product.draft(shape, operands, _Form(shape, operands, tile, together))


@dataclass(frozen=True)
class _Form:
    """See `code_product.Form`."""

    shape: Convolution
    operands: Operands
    tile: Tile
    together: int
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
        planes, channels, size = self.operands.bits, self.shape.channels, self.together
        with block():
            total = local(1, "int32")
            store(total, const(0, "int32"), 0)
            words = local(planes, "uint64")

            def cut(word: Expr, first: Expr, count: int) -> None:
                """Add `count` codes to the planes of word `word`, from bit `first` on."""
                vector = let(load(codes, source * channels + word * WORD_BITS + first, count))
                for i in range(planes):
                    bits = _gathered(vector, i) if count == GATHERED else self._chosen(vector, i, count)
                    store(words, load(words, i) | (bits << cast(first, "uint64")), i)

            def finish(word: Expr, count: int) -> None:
                for i in range(planes):
                    store(words, const(0, "uint64"), i)
                in_lanes(count, size, lambda first, lanes: cut(word, first, lanes))
                for i in range(planes):
                    bits = let(load(words, i))
                    store(image, bits, i * self._plane + pixel * self.steps + word)
                    worth = cast(tirx.popcount(bits), "int32") * self._worth(i)
                    store(total, load(total, 0) + worth, 0)

            whole, rest = divmod(channels, WORD_BITS)
            if whole:
                with loop(whole) as word:
                    finish(word, WORD_BITS)
            if rest:
                finish(whole, rest)
            if sums is not None:
                store(sums, load(total, 0), pixel)

    def _chosen(self, vector: Expr, i: int, count: int) -> Expr:
        kind = "int8" if self.operands.signed else "uint8"
        chosen = (vector & const(1 << i, kind, count)) != const(0, kind, count)
        return cast(mask_bits(chosen, count) if count > 1 else chosen, "uint64")

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
        bits, weight_bits = self.operands.bits, self.operands.weight_bits
        if bits * weight_bits > MOST_UNROLLED and not self.operands.signed:  # whose highest plane counts negatively
            total = Registers(slots, lanes, "int64")
            with loop(bits) as plane:
                acc.clear()
                for j in reversed(range(weight_bits)):
                    self._double(acc, 1)
                    self._count(weight, image, window, index, together, acc, (bits - 1 - plane, j))
                self._double(total, 1)
                for slot in range(slots):
                    total[slot] = total[slot] + acc[slot]
            return self._sums(total)
        pairs = [(i, j) for i in range(bits) for j in range(weight_bits)]
        pairs.sort(key=sum, reverse=True)
        for number, (i, j) in enumerate(pairs):
            self._double(acc, sum(pairs[number - 1]) - i - j if number else 0)
            self._count(weight, image, window, index, together, acc, (i, j))
        return self._sums(acc)

    def _double(self, acc: Registers, times: int) -> None:
        for slot in range(len(acc) if times else 0):
            acc[slot] = acc[slot] << const(times, "int64", self.tile.lanes)

    def _sums(self, acc: Registers) -> Callable[[int], Sequence[Expr]]:
        lanes = self.tile.lanes

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
        pair: tuple[Expr, Expr],
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
                    negative = self.operands.signed and i == self.operands.bits - 1
                    acc[slot] = acc[slot] - count if negative else acc[slot] + count

    def _worth(self, i: int) -> int:
        """What a set bit of plane i is worth."""
        return -(1 << i) if self.operands.signed and i == self.operands.bits - 1 else 1 << i


def _gathered(codes: Expr, i: int) -> Expr:
    """Bit i of eight bytes as the lowest bits of uint64: pairs, fours and then all of them move together."""
    bits = (reinterpret(codes, "uint64") >> const(i, "uint64")) & const(0x0101010101010101, "uint64")
    for shift, kept in ((7, 0x0003000300030003), (14, 0x0000000F0000000F), (28, 0xFF)):
        bits = hold((bits | (bits >> const(shift, "uint64"))) & const(kept, "uint64"), 1)
    return bits
