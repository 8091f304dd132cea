"""The families that can multiply codes of some widths on a target, and the one that a request gets.

`tuning.crossover` knows which is fastest, from measurements. Plain loops serve what no other family can. Dot products
are Winograd's where that fits.
"""

from edgedm.errors import UnsupportedError
from edgedm.targets.kernels import bit_planes, bitserial, bitserial_bytes, dot, generic, lookup, winograd
from edgedm.targets.kernels.dot_tiles import VnniDot
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.quant_operands import Operands
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.target import Target
from edgedm.targets.tuning import byte_tiles, crossover, tiling
from edgedm.targets.tuning.crossover import BITSERIAL, DOT, GENERIC, LOOKUP

MOST_PLANES = 4
"""Bits of the codes and of the weights that are cut into planes."""

_NIBBLE = 4  # bits of a weight that shares its byte
_ANY = Convolution(1, 8, 64, 64)


def draft(shape: Convolution, operands: Operands, target: Target, family: str | None = None) -> Draft:
    """Return the draft of `family`, or of the fastest; UnsupportedError where it cannot multiply these widths."""
    families = able(target, operands.weight_bits, operands.bits, operands.signed)
    if family is None:
        fits = not operands.signed and winograd.fits(shape, operands)
        family = crossover.fastest(target, operands.weight_bits, operands.bits, shape, families, winograd=fits)
    if family not in families:
        raise UnsupportedError(
            f"kernels: no {family} of W{operands.weight_bits}A{operands.bits} on {target.name}; expected one of "
            f"{', '.join(families)}"
        )
    return _make(family, shape, operands, target)


def able(target: Target, weight_bits: int, bits: int, signed: bool | None = None) -> tuple[str, ...]:
    """Return the families that multiply weights of `weight_bits` and codes of `bits`; signs times signs if both are 1.

    `signed` says whether weights are +-1 and codes signed (by default where weights have 1 bit). Plain loops multiply
    anything but packed signs.
    """
    cut = max(weight_bits, bits) <= MOST_PLANES
    signs = weight_bits == bits == 1
    families = [BITSERIAL] if cut else []
    families += [LOOKUP] if cut and tiling.lookup(target, _ANY, bits) is not None else []
    signed = weight_bits == 1 if signed is None else signed
    dots = tiling.dot(target, _ANY.width, bits, weight_bits, weight_bits <= _NIBBLE, signed=signed)
    families += [DOT] if dots is not None and not signs else []
    return (*families, *(() if signs else (GENERIC,)))


def _make(family: str, shape: Convolution, operands: Operands, target: Target) -> Draft:
    bits, weight_bits = operands.bits, operands.weight_bits
    if family == BITSERIAL:
        tile = tiling.bitserial(target, shape)
        if operands.packed:
            signs = operands.specs[operands.image]
            counter = byte_tiles.bits(target, shape, signs.shape[-1])
            if counter is not None:
                return bitserial_bytes.draft(shape, signs, operands.weight, operands.output, operands.epilogue, counter)
            return bitserial.draft(shape, operands, tile)
        # By shifts instead of masks, a W4A4 convolution of 3x3 and 64 channels has 3,489 instructions for 4,782 on
        # riscv64 and 2,976 for 3,632 on armv7+neon, but 2 to 7 % more on aarch64, x86-64-v3 and wasm32+simd128.
        together = target.vector_bytes if target.isa == "x86" else bit_planes.GATHERED
        return bit_planes.draft(shape, operands, tile, together)
    reader = tiling.lookup(target, shape, bits)
    if family == LOOKUP and reader is not None:
        return lookup.draft(shape, operands, reader)
    pixels, nibbles = shape.out_height * shape.out_width, weight_bits <= _NIBBLE
    dots = tiling.dot(target, pixels, bits, weight_bits, nibbles, signed=operands.signed)
    if family == DOT and isinstance(dots, VnniDot) and not operands.signed and winograd.fits(shape, operands):
        patches = tiling.dot(target, winograd.patches(shape), bits, weight_bits, nibbles=False)
        assert isinstance(patches, VnniDot)
        return winograd.draft(shape, operands, patches)
    if family == DOT and dots is not None:
        return dot.draft(shape, operands, dots)
    return generic.product(shape, operands)
