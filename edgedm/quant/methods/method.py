"""What a method is to the quantisation API: options, training layers, attention quantisers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import nn

from edgedm.models.bits import Bits, parse_bits
from edgedm.models.roles import Role
from edgedm.quant.clock import Clock
from edgedm.quant.geometry import Layer


class Options(BaseModel):
    """The named options of a method; a checkpoint keeps them, so each decides structure or says how it was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Site:
    """Where a layer (or an attention block, role `attn_matmul`) stands and what it gets.

    `edges` are the first timesteps of the table rows, for methods with per-timestep tables; `heads` counts the
    heads of an attention block; `head_or_tail` says that the layer lies in one of `Method.ends`.
    """

    path: str
    role: Role
    bits: Bits
    clock: Clock
    edges: tuple[int, ...] = (0,)
    heads: int = 1
    head_or_tail: bool = False

    @property
    def weight_bits(self) -> int:
        """Bits of the weight."""
        return parse_bits(self.bits)[0]

    @property
    def activation_bits(self) -> int:
        """Bits of the activation."""
        return parse_bits(self.bits)[1]


def _no_operands(_site: Site, _options: Any) -> Mapping[str, nn.Module]:
    return {}


def _one_bin(_options: Any) -> int:
    return 1


def _no_taps(_unet: nn.Module, _options: Any) -> list[str]:
    return []


def _no_mix(_options: Any) -> float:
    return 0.0


def _no_ends(_model: nn.Module, _options: Any) -> list[str]:
    return []


@dataclass(frozen=True)
class Method:
    """One method: `layer` makes the training form of a float layer, `operands` an attention block's quantisers.

    A training layer starts from the float layer's weights and has `to_inference()`; the operands' modules are keyed
    by `edgedm.models.attention.OPERANDS`. `options` is the method's `Options` class, whose defaults are the paper's.
    `bins` says how many rows the per-timestep tables get (1: no table), `taps` which modules of a float UNet have
    their output carried from step to step, `mix` what their coefficients start from, and `ends` which modules are
    the head and tail of a model, for a method that treats them in a way of their own; all read the options.
    """

    name: str
    options: type[Options]
    layer: Callable[[Layer, Site, Any], nn.Module]
    operands: Callable[[Site, Any], Mapping[str, nn.Module]] = _no_operands
    bins: Callable[[Any], int] = _one_bin
    taps: Callable[[nn.Module, Any], list[str]] = _no_taps
    mix: Callable[[Any], float] = _no_mix
    ends: Callable[[nn.Module, Any], list[str]] = _no_ends
