"""The float end of the products: ((acc * multiplier) * pixel_scale + addend) + residual_scale * residual.

The products of uniform codes have a scalar `step` in place of `pixel_scale`. Neutral constants are dropped, so a kernel
does only what its node asks for. LLVM may contract a product and a sum into one rounding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgedm.errors import InvalidModelError
from edgedm.targets.kernels.builder import Buffer, Expr, block, load, local, loop, splat, store
from edgedm.targets.kernels.spec import Operand

UNIFORM_TERMS = ("multiplier", "step", "addend", "residual", "residual_scale")  # of products of uniform codes
_FACTORS = ("multiplier", "pixel_scale", "step")
_NEUTRAL = {**dict.fromkeys(_FACTORS, 1.0), "addend": 0.0, "residual": 0.0, "residual_scale": 1.0}


@dataclass(frozen=True)
class Epilogue:
    """Which terms an op keeps (name -> operand, in the op's order) and the shape that they broadcast to."""

    terms: Mapping[str, Operand]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, named: Mapping[str, Operand], shape: tuple[int, ...]) -> "Epilogue":
        """Keep the operands that are not neutral; `shape` is the output's, channels last."""
        gone = {name for name, operand in named.items() if operand.equals(_NEUTRAL[name])}
        if "residual" in gone:
            gone.add("residual_scale")
        terms = {name: operand for name, operand in named.items() if name not in gone}
        for name, operand in terms.items():
            _check_broadcast(name, operand.shape, shape)
        return cls(terms, shape)

    def apply(self, acc: Expr, buffers: Mapping[str, Buffer], row: Expr, channel: Expr, lanes: int) -> Expr:
        """Return the output for `lanes` channels from `channel` of flat pixel `row`; `acc` is float32."""

        def term(name: str) -> Expr:
            return self._load(name, buffers[name], row, channel, lanes)

        for name in _FACTORS:
            if name in self.terms:
                acc = acc * term(name)
        if "addend" in self.terms:
            acc = acc + term("addend")
        if "residual" in self.terms:
            scaled = term("residual")
            if "residual_scale" in self.terms:
                scaled = term("residual_scale") * scaled
            acc = acc + scaled
        return acc

    def _load(self, name: str, buffer: Buffer, row: Expr, channel: Expr, lanes: int) -> Expr:
        shape = self.terms[name].shape
        per_channel = bool(shape) and shape[-1] == self.shape[-1] and shape[-1] > 1
        offset = _leading_offset(shape[:-1], self.shape[:-1], row)
        if per_channel:
            return load(buffer, offset * shape[-1] + channel, lanes)
        return splat(load(buffer, offset), lanes)


def _leading_offset(shape: Sequence[int], full: Sequence[int], row: Expr) -> Expr:
    """Return the flat offset into leading axes `shape` (broadcast to `full`) of flat row `row` of `full`."""
    if math.prod(shape) == 1:
        return 0
    if math.prod(shape) == math.prod(full):
        return row
    shape = (*([1] * (len(full) - len(shape))), *shape)
    offset: Expr = 0
    for axis, (own, extent) in enumerate(zip(shape, full, strict=True)):
        if own > 1:
            coordinate = (row // math.prod(full[axis + 1 :])) % extent
            offset = offset + coordinate * math.prod(shape[axis + 1 :])
    return offset


def _check_broadcast(name: str, shape: Sequence[int], full: Sequence[int]) -> None:
    aligned = list(full)[len(full) - len(shape) :]
    if len(shape) > len(full) or any(own not in (1, extent) for own, extent in zip(shape, aligned, strict=True)):
        raise InvalidModelError(f"{name}: shape {list(shape)} does not broadcast to the output's {list(full)}")


def store_few(
    total: Expr,
    count: int,
    size: int,
    epilogue: Epilogue,
    inputs: Mapping[str, Buffer],
    y: Buffer,
    row: Expr,
    channel: Expr,
) -> None:
    """Finish the first `count` of `size` float32 lanes one by one: a tail of output channels."""
    with block():
        spill = local(size, "float32")
        store(spill, total, 0, size)
        with loop(count) as o:
            value = epilogue.apply(load(spill, o), inputs, row, channel + o, 1)
            store(y, value, row * epilogue.shape[-1] + channel + o)
