"""A layer with uniformly quantised weights and activations, as it trains: LSQ, PTQ, DilateQuant, 8-bit edges."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgedm.errors import UnsupportedError
from edgedm.ops import pack_codes
from edgedm.quant import integer
from edgedm.quant.clock import Clock
from edgedm.quant.geometry import Geometry, Layer
from edgedm.quant.inference import UNQUANTIZED
from edgedm.quant.uniform import SMALLEST_STEP, ActivationTable, fake_quantize, minmax_grid


class UniformLayer(nn.Module):
    """conv(quantise(x / dilation), quantise(W)) + bias; starts from a float layer.

    The weight has one step and zero point an output channel, from min to max with 0 in range (`symmetric`: zero
    point 2^(bits - 1)). `step` is a parameter, `zero` a buffer of integers. The activation quantiser is an
    `ActivationTable`, which passes everything until it is calibrated. With `dilate` the layer divides its input by
    `dilation` f32[I], ones until DilateQuant sets them.
    """

    def __init__(
        self,
        layer: Layer,
        weight_bits: int,
        activation_bits: int,
        clock: Clock,
        edges: Sequence[int] = (0,),
        symmetric: bool = False,
        dilate: bool = False,
    ) -> None:
        super().__init__()
        if weight_bits == UNQUANTIZED or weight_bits == 1:
            raise UnsupportedError(f"uniform weights of {weight_bits} bits: expected 2, 4, 6 or 8")
        self.weight_bits, self.symmetric = weight_bits, symmetric
        self.geometry = Geometry.of(layer)
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        step, zero = weight_grid(self.weight.detach(), weight_bits, symmetric)
        self.step = nn.Parameter(step)
        self.register_buffer("zero", zero)
        self.register_buffer("dilation", torch.ones(self.geometry.in_channels) if dilate else None)
        self.zero: Tensor
        self.dilation: Tensor | None
        quantised = activation_bits != UNQUANTIZED
        self.activation = ActivationTable(activation_bits, edges, clock) if quantised else None

    def quantized_weight(self) -> Tensor:
        """Return the weight on its grid, with gradients."""
        step = self.step.clamp(min=SMALLEST_STEP)
        along = self.geometry.along_out
        return fake_quantize(self.weight, along(step), along(self.zero), self.weight_bits)

    def quantized_input(self, x: Tensor) -> Tensor:
        """Return what the weight is applied to."""
        if self.dilation is not None:
            x = x / self.geometry.along_in(self.dilation)
        return x if self.activation is None else self.activation(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, shaped as the float layer's."""
        return self.geometry.apply(self.quantized_input(x), self.quantized_weight(), self.bias)

    def codes(self) -> Tensor:
        """Return the integer weight, float tensor of 0 .. 2^bits - 1 in the weight's shape."""
        step, zero = self.geometry.along_out(self.step.clamp(min=SMALLEST_STEP)), self.geometry.along_out(self.zero)
        codes: Tensor = (self.weight.detach() / step.detach()).round().add(zero).clamp(0, 2**self.weight_bits - 1)
        return codes

    def to_inference(self) -> integer.QuantLayer:
        """Return the layer that runs, with packed integer weights."""
        return integer.QuantLayer(
            pack_codes(self.codes(), self.weight_bits),
            self.weight.shape,
            self.weight_bits,
            self.step.detach().clamp(min=SMALLEST_STEP).clone(),
            self.zero.to(torch.uint8),
            None if self.bias is None else self.bias.detach().clone(),
            None if self.activation is None else self.activation.to_inference(),
            self.geometry,
            None if self.dilation is None else self.dilation.clone(),
        )


def weight_grid(weight: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return one (step, zero) an output channel, f32[O] each: min-max with 0 in range, or max |W| if `symmetric`."""
    flat = weight.flatten(1)
    if symmetric:
        step = (flat.abs().amax(1) / (2 ** (bits - 1) - 1)).clamp(min=SMALLEST_STEP)
        return step, torch.full_like(step, 2 ** (bits - 1))
    step, zero = minmax_grid(flat, bits, (1,))
    return step.reshape(-1), zero.reshape(-1)
