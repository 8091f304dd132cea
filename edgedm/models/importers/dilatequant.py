"""DilateQuant's files (arXiv 2409.14307), in the layout of EDA-DM, which its code builds on.

    model.<path>.weight            the dilation s is in it
    model.<path>.weight_quantizer.{delta,zero_point}     and `.alpha` where rounding was learned (AdaRound)
    model.<path>.act_quantizer.delta                     [T], or one
    model.<block>.[attention.]act_quantizer_{q,k,w,v}.delta     [T H], or one

Activation zero points are plain attributes there, so they are in no state dict: `zero_points` names a file with
`<path>.act_quantizer.zero_point` (and the weights', where they aren't stored either), to be dumped beside it. It may
also hold `<path>.dilation` [I]: s where 1 / s was left to the input and not folded into the layer before. The
layout of the authors' own code could not be read; what is not certain is an option.
"""

from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models.bits import parse_bits
from edgedm.models.checkpoint import Checkpoint
from edgedm.models.importers import uniform
from edgedm.models.importers.assemble import State, assemble
from edgedm.models.importers.containers import plain
from edgedm.models.importers.layout import (
    NO_AVERAGE,
    CifarOptions,
    Layout,
    LDMOptions,
    Report,
    make_config,
    name_modules,
)
from edgedm.models.importers.naming import Layer
from edgedm.models.importers.noise import TIMESTEPS
from edgedm.models.importers.reading import read
from edgedm.models.importers.tensors import Tensors
from edgedm.models.roles import ROLES
from edgedm.quant.integer import QuantLayer, UniformQuantizer
from edgedm.quant.policy import policy_of

OPERANDS = "query and key are quantised with the factor d^-1/4 (scaled), or before it"
_OPERANDS = {"query": "q", "key": "k", "weight": "w", "value": "v"}
_DUMP = (
    "torch.save({n + '.zero_point': torch.as_tensor(m.zero_point).float() for n, m in qnn.model.named_modules() "
    "if hasattr(m, 'zero_point')}, 'zero_points.pt') writes them where the model is loaded"
)


class _Widths(BaseModel):
    """Widths, and what the state dict lacks."""

    zero_points: str = Field(description="the file with the zero points, which the state dict lacks")
    bits: str = Field("W4A4", description="of the body")
    roles: str = Field("", description='of single roles: "conv_in:W8A8,time_mlp:W8A8"')
    softmax_bits: int = Field(8, description="of the softmax's output")
    table_order: Literal["timestep", "head"] = Field(
        "timestep", description="what a table of T H numbers lists together: the heads of a timestep, or the reverse"
    )
    clamp_zero_points: bool = Field(False, description="those outside the grid; else they are refused")


class DilateQuantLDMOptions(LDMOptions, _Widths):
    """Of latent-diffusion."""

    weights: Literal["raw"] = Field("raw", description=NO_AVERAGE)
    operands: Literal["scaled", "unscaled"] = Field("scaled", description=OPERANDS)


class DilateQuantCifarOptions(CifarOptions, _Widths):
    """ddim's attention multiplies by d^-1/2 after the product, so its operands are unscaled."""

    weights: Literal["raw"] = Field("raw", description=NO_AVERAGE)
    operands: Literal["scaled", "unscaled"] = Field("unscaled", description=OPERANDS)


def _build(
    content: Any, file: str, options: DilateQuantLDMOptions | DilateQuantCifarOptions, report: Report
) -> Checkpoint:
    tensors = plain(content, file, "model.")
    for name in tensors.names():
        if "_quantizer_0." in name:
            raise UnsupportedError(
                f"{file}: '{name}': a layer whose two concatenated inputs have quantisers of their own (split) cannot "
                "be carried; train without the split"
            )
    side = plain(read(options.zero_points), options.zero_points, "model.")
    naming = name_modules(tensors, options)
    rows = _rows(tensors)
    dilated = any(name.endswith(".dilation") for name in side.names())
    config = make_config(
        tensors,
        naming,
        options,
        report,
        "dilatequant",
        roles=_roles(options.bits, options.roles),
        options={"dilate": dilated, "tpq": rows > 1, "bins": rows, "softmax_bits": options.softmax_bits},
        timestep_bins=[i * TIMESTEPS // rows for i in range(rows)] if rows > 1 else [],
    )
    fill = _Fill(tensors, side, options, report)
    checkpoint = assemble(tensors, naming, config, fill.layer, fill.operand)
    side.finish()
    return checkpoint


def _roles(bits: str, changes: str) -> dict[str, str]:
    """Return the paper's policy at `bits` with single roles changed."""
    try:
        roles: dict[str, str] = {str(role): value for role, value in policy_of("dilatequant", None, bits).bits.items()}
        for change in filter(None, changes.split(",")):
            role, _, value = change.strip().partition(":")
            if role not in ROLES:
                raise UnsupportedError(f"option roles: expected ROLE:BITS of {', '.join(ROLES)}, got {change!r}")
            parse_bits(value)
            roles[role] = value
    except ValueError as error:
        raise UnsupportedError(f"option bits, roles: {error}") from error
    return roles


def _rows(tensors: Tensors) -> int:
    """Return T, the length of the layers' tables."""
    longest = 1
    for name in tensors.names():
        if name.endswith(".act_quantizer.delta"):
            count = 1
            for axis in tensors.shape(name):
                count *= axis
            longest = max(longest, count)
    if longest > TIMESTEPS or TIMESTEPS % longest:
        raise InvalidModelError(f"{tensors.file}: tables of {longest} rows: expected a divisor of {TIMESTEPS}")
    return longest


class _Fill:
    """Fills layers and operands from the state dict and the file beside it."""

    def __init__(self, tensors: Tensors, side: Tensors, options: Any, report: Report) -> None:
        self.tensors, self.side, self.options, self.report = tensors, side, options, report

    def layer(self, module: nn.Module, layer: Layer) -> State | None:
        if not isinstance(module, QuantLayer):
            return None
        bits, grid = module.weight_bits, layer.name("weight_quantizer")
        step, zero = layer.per_out("weight_quantizer.delta"), self._weight_zero(layer)
        step, zero = uniform.weight_grid(self.tensors, grid, step, zero, bits)
        weight = layer.weight()
        if layer.has("weight_quantizer.alpha"):
            along = (-1, *(1,) * (weight.ndim - 1))
            up = layer.adapt(self.tensors.take(f"{grid}.alpha", layer.file_shape)) >= 0
            codes = (weight / step.reshape(along)).floor().add(up).add(zero.reshape(along)).clamp(0, 2**bits - 1)
        else:
            codes = uniform.weight_codes(weight, step, zero, bits)
        activation: State = {}
        if module.activation is not None:
            activation = self._table(module.activation, layer.name("act_quantizer"))
        state = uniform.layer_state(module, layer, codes, step, zero, activation)
        if module.dilation is not None:
            name = layer.name("dilation")
            state["dilation"] = torch.ones_like(module.dilation)
            if name in self.side:
                state["dilation"] = self.side.take(name, tuple(module.dilation.shape))
                uniform.check_steps(self.side, name, state["dilation"])
        return state

    def operand(self, operand: str, module: nn.Module, block: Layer) -> State:
        assert isinstance(module, UniformQuantizer)
        part = f"act_quantizer_{_OPERANDS[operand]}"
        inner = block.name(f"attention.{part}")
        name = inner if f"{inner}.delta" in self.tensors else block.name(part)
        factor = 1.0
        if self.options.operands == "unscaled" and operand in ("query", "key"):
            factor = (block.shape[0] // module.heads) ** -0.25
        return self._table(module, name, factor, zero_by_default=operand == "weight")

    def _weight_zero(self, layer: Layer) -> Tensor:
        """Return the zero points of the state dict or of the file beside it, which must agree where both have them."""
        suffix, name = "weight_quantizer.zero_point", layer.name("weight_quantizer.zero_point")
        stored = layer.per_out(suffix) if layer.has(suffix) else None
        if stored is not None and name not in self.side:
            return stored
        side = self._beside(layer.name("weight_quantizer"))
        beside = Layer(side, layer.origin, layer.shape).per_out(suffix)
        if stored is not None and not torch.equal(stored, beside):
            raise side.error(name, f"differs from that of {self.tensors.file}: are both of the same model?")
        return beside

    def _table(
        self, module: UniformQuantizer, name: str, factor: float = 1.0, zero_by_default: bool = False
    ) -> dict[str, Tensor]:
        """Return a quantiser's table; its steps are multiplied by `factor`."""
        step = self._shaped(self.tensors.take(f"{name}.delta"), module.heads)
        if zero_by_default and f"{name}.zero_point" not in self.side:
            zero = torch.zeros_like(step)
        else:
            zero = self._shaped(self._beside(name).take(f"{name}.zero_point"), module.heads)
        if len(zero) == 1:
            zero = zero.expand_as(step)
        clamp = self.options.clamp_zero_points
        return uniform.activation_state(module, self.tensors, f"{name}.delta", step * factor, zero, clamp, self.report)

    def _shaped(self, values: Tensor, heads: int) -> Tensor:
        """Return [rows, heads] of a table however its axes are written."""
        flat = values.reshape(-1)
        if flat.numel() == 1:
            return flat.reshape(1, 1).expand(1, heads)
        if flat.numel() % heads:
            return flat[:, None]
        by_head = heads > 1 and self.options.table_order == "head"
        return flat.reshape(heads, -1).T.contiguous() if by_head else flat.reshape(-1, heads)

    def _beside(self, name: str) -> Tensors:
        if f"{name}.zero_point" not in self.side:
            raise InvalidModelError(
                f"{self.side.file}: tensor '{name}.zero_point' is missing; zero points are no part of the state dict: "
                f"{_DUMP}"
            )
        return self.side


DILATEQUANT_LDM = Layout("dilatequant-ldm", "DilateQuant on latent-diffusion", DilateQuantLDMOptions, _build)
DILATEQUANT_CIFAR = Layout("dilatequant-cifar", "DilateQuant on ermongroup/ddim", DilateQuantCifarOptions, _build)
