"""Packing of 2-, 4-, 6- and 8-bit weight codes in checkpoints.

Codes of one output channel stand in a row; 4-bit codes take half a byte each and 2-bit ones a quarter, the first one
in the low bits, rows padded with zeros to whole bytes; 6- and 8-bit codes take a byte each.
"""

import torch
from torch import Tensor

_PER_BYTE = {2: 4, 4: 2, 6: 1, 8: 1}


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes [O, ...] of 0 .. 2^bits - 1 into uint8[O, bytes]."""
    count = _PER_BYTE[bits]
    flat = codes.flatten(1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.shape[1] % count)).reshape(len(flat), -1, count)
    shifts = torch.arange(count, dtype=torch.uint8, device=flat.device) * bits
    return (padded << shifts).sum(-1).to(torch.uint8)


def unpack_codes(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Undo `pack_codes`: uint8 codes of `shape`. Raises `ValueError` where the bytes don't fit it."""
    count, row = _PER_BYTE[bits], int(torch.tensor(shape[1:]).prod())
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (shape[0], -(-row // count)):
        raise ValueError(f"packed codes {packed.dtype} {tuple(packed.shape)}: expected those of {shape}, {bits} bits")
    shifts = torch.arange(count, dtype=torch.uint8, device=packed.device) * bits
    mask = (1 << bits) - 1 if count > 1 else 255
    codes = (packed[:, :, None] >> shifts) & mask
    return codes.flatten(1)[:, :row].reshape(shape)
