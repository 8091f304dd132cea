"""The exported ops as torch functions: plain torch in eager mode, one `edgedm` node each under export.

The semantics are those of the ONNX functions of the same name in this package; tests hold the two together.
"""

import torch
from torch import Tensor

from edgedm.ops.codes import unpack_codes
from edgedm.ops.domain import DOMAIN, INT4_MAX, INT4_MIN, VERSION


def binarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Return +1 where x + threshold >= 0, else -1 (NaN: -1), as float32; `threshold` broadcasts to `x`."""
    if torch.compiler.is_exporting():
        return _symbolic("Binarize", (x, threshold), x.shape)
    return torch.where(x + threshold >= 0, 1.0, -1.0)


def unpack_bits(bits: Tensor, channels: int) -> Tensor:
    """Unpack uint8[O, Cb] to f32[O, C] or uint8[O, kh, kw, Cb] to f32[O, C, kh, kw], values +1 and -1."""
    out, *kernel = bits.shape[:-1]
    if torch.compiler.is_exporting():
        name = "UnpackBits" if kernel else "UnpackBitsLinear"
        return _symbolic(name, (bits,), (out, channels, *kernel), channels=channels)
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    planes = (bits[..., None] >> shifts) & 1
    signs = planes.flatten(-2)[..., :channels].to(torch.float32) * 2 - 1
    return signs.movedim(-1, 1)


def timestep_lookup(table: Tensor, edges: Tensor, timestep: Tensor) -> Tensor:
    """Return the row of `table` f32[bins, n] whose bin holds `timestep` int64[1]; f32[n].

    `edges` int64[bins] ascend and are the first timestep of each bin; a timestep below the first edge takes row 0.
    """
    if torch.compiler.is_exporting():
        return _symbolic("TimestepLookup", (table, edges, timestep), table.shape[1:])
    row = ((edges <= timestep).sum() - 1).clamp(min=0)
    return table[row]


def quantize4(x: Tensor, step: Tensor) -> Tensor:
    """Round x / step half to even, clamp to the int4 range -8..7, multiply by `step` (one value): same shape.

    Exported as QuantizeLinear and DequantizeLinear with an int4 zero point of 0.
    """
    if torch.compiler.is_exporting():
        return _symbolic("Quantize4", (x, step), x.shape)
    return torch.clamp(torch.round(x / step), INT4_MIN, INT4_MAX) * step


def quantize_uniform(x: Tensor, step: Tensor, zero: Tensor, bits: int, axis: int | None = None) -> Tensor:
    """Return (clamp(round(x / step) + zero, 0, 2^bits - 1) - zero) step: same shape, rounding half to even.

    `step` f32 and `zero` f32 (an integer within the grid) are single values [] or, with `axis`, one a slice of that
    axis. Exported as QuantizeLinear and DequantizeLinear of uint4 or uint8; other widths clip uint8 codes between.
    """
    if torch.compiler.is_exporting():
        where = {} if axis is None else {"axis": axis}
        return _symbolic("QuantizeUniform", (x, step, zero), x.shape, bits=bits, **where)
    if axis is not None:
        shape = [1] * x.ndim
        shape[axis] = -1
        step, zero = step.reshape(shape), zero.reshape(shape)
    return (torch.clamp(torch.round(x / step) + zero, 0, 2**bits - 1) - zero) * step


def dequantize_weight(codes: Tensor, step: Tensor, zero: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Return (codes - zero) step as f32[shape]: uint8 codes as `pack_codes` packs them, one step and zero a row.

    Exported as a DequantizeLinear of a uint4 or uint8 constant.
    """
    if torch.compiler.is_exporting():
        return _symbolic("DequantizeWeight", (codes, step, zero), shape, bits=bits)
    each = (-1, *(1,) * (len(shape) - 1))
    return (unpack_codes(codes, bits, shape).float() - zero.float().reshape(each)) * step.reshape(each)


def _symbolic(name: str, inputs: tuple[Tensor, ...], shape: torch.Size | tuple[int, ...], **attrs: int) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}", inputs, {**attrs}, dtype=torch.float32, shape=tuple(shape), version=VERSION
    )
