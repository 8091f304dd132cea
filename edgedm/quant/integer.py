"""Layers of 2 to 8 bits as they run: integer weights, per-timestep activation tables, no training state.

Used by EfficientDM, DilateQuant, LSQ and PTQ. `forward` is the specification of the exported graph: QuantizeLinear
and DequantizeLinear around standard Conv and MatMul. O and I are output and input channels, T timestep bins.
"""

import torch
from torch import Tensor, nn

from edgedm.ops import dequantize_weight, quantize_uniform, timestep_lookup
from edgedm.quant.clock import Clock
from edgedm.quant.geometry import Geometry


class UniformQuantizer(nn.Module):
    """Put an activation on the unsigned grid of `bits` bits of the current timestep's row.

    `table` f32[T, 2 H]: H steps, then H integer zero points; H = 1 is per tensor, else x is [N, H, L, d] and every
    head has its own grid. `edges` int64[T] are the first timesteps of the rows.
    """

    def __init__(self, table: Tensor, edges: Tensor, bits: int, clock: Clock) -> None:
        super().__init__()
        if table.ndim != 2 or table.shape[1] % 2 or len(table) != len(edges):
            raise ValueError(f"table {tuple(table.shape)}, edges {tuple(edges.shape)}: expected [T, 2 H] and [T]")
        self.bits, self.clock, self.heads = bits, clock, table.shape[1] // 2
        self.register_buffer("table", table)
        self.register_buffer("edges", edges)
        self.table: Tensor
        self.edges: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid, same shape; all images of a batch are at one timestep."""
        row = self.table[0] if len(self.table) == 1 else timestep_lookup(self.table, self.edges, self.clock.now()[:1])
        step, zero = row[: self.heads], row[self.heads :]
        if self.heads == 1:
            return quantize_uniform(x, step.reshape(()), zero.reshape(()), self.bits)
        return quantize_uniform(x, step, zero, self.bits, axis=1)

    def extra_repr(self) -> str:
        """Return bits and table shape for `print(model)`."""
        return f"A{self.bits}, rows={len(self.table)}, heads={self.heads}"


class QuantLayer(nn.Module):
    """y = conv(quantise(x / dilation), (codes - zero) step) + bias, or the linear layer likewise.

    `codes` uint8 holds the weight's codes as `pack_codes` packs them, `step` f32[O], `zero` uint8[O];
    `dilation` f32[I] is DilateQuant's s where it could not be folded into the layer before. The padding is 0.0,
    which is the zero point's code.
    """

    def __init__(
        self,
        codes: Tensor,
        shape: torch.Size | tuple[int, ...],
        weight_bits: int,
        step: Tensor,
        zero: Tensor,
        bias: Tensor | None,
        activation: UniformQuantizer | None,
        geometry: Geometry,
        dilation: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.weight_bits, self.shape, self.geometry = weight_bits, tuple(shape), geometry
        self.in_channels, self.out_channels = geometry.in_channels, shape[0]
        self.kernel_size = self.shape[2:]
        self.register_buffer("codes", codes)
        self.register_buffer("step", step)
        self.register_buffer("zero", zero)
        self.register_buffer("bias", bias)
        self.register_buffer("dilation", dilation)
        self.activation = activation
        self.codes: Tensor
        self.step: Tensor
        self.zero: Tensor
        self.bias: Tensor | None
        self.dilation: Tensor | None

    def weight(self) -> Tensor:
        """Return the dequantised weight, f32 in torch's layout."""
        return dequantize_weight(self.codes, self.step, self.zero, self.weight_bits, self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; see the class."""
        return self.product(self.quantized_input(x))

    def quantized_input(self, x: Tensor) -> Tensor:
        """Return what the weight is applied to."""
        if self.dilation is not None:
            x = x / self.geometry.along_in(self.dilation)
        return x if self.activation is None else self.activation(x)

    def product(self, x: Tensor) -> Tensor:
        """Apply weight and bias to an activation that is quantised already."""
        return self.geometry.apply(x, self.weight(), self.bias)

    def extra_repr(self) -> str:
        """Return the shape of the layer for `print(model)`."""
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, W{self.weight_bits}"
