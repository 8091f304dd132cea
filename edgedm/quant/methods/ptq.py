"""Plain post-training quantisation: rounding to the nearest code on calibrated grids, nothing learned.

The floor of every comparison at 2 to 8 bits. Weights are asymmetric, one step and zero point an output channel;
activations have one row a tensor, calibrated by the least mean |v^ - v|^2.4.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import nn

from edgedm.models.attention import OPERANDS
from edgedm.quant.geometry import Layer
from edgedm.quant.methods.method import Method, Options, Site
from edgedm.quant.uniform import ActivationTable, mse_grid
from edgedm.quant.uniform_layer import UniformLayer


class PTQOptions(Options):
    """The options of plain calibration."""

    weights: Literal["mse", "minmax"] = Field("mse", description="the weights' range: of least error, or all of it")
    images: int = Field(default=32, ge=1, description="trajectories that are calibrated on")
    steps: int = Field(default=25, ge=1, description="DDIM steps of each")


def _layer(layer: Layer, site: Site, options: PTQOptions) -> nn.Module:
    made = UniformLayer(layer, site.weight_bits, site.activation_bits, site.clock)
    if options.weights == "mse":
        step, zero = mse_grid(made.weight.detach().flatten(1), site.weight_bits, (1,))
        made.step.data.copy_(step.flatten())
        made.zero.copy_(zero.flatten())
    return made


def _operands(site: Site, options: PTQOptions) -> Mapping[str, nn.Module]:
    del options
    return {name: ActivationTable(site.activation_bits, (0,), site.clock) for name in OPERANDS}


PTQ = Method("ptq", PTQOptions, _layer, _operands)
