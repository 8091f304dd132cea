"""What a layer does besides its numbers: stride, padding, dilation, groups; the same for linear layers and both
convolutions, so that a training layer is written once."""

from dataclasses import dataclass
from typing import TypeGuard

from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.errors import UnsupportedError

Layer = nn.Conv2d | nn.Conv1d | nn.Linear


def is_layer(module: nn.Module) -> TypeGuard[Layer]:
    """Return whether `module` is a layer that can be quantised."""
    return isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear)


def bias_of(layer: Layer) -> Tensor:
    """Return a copy of the layer's bias, zeros where it has none."""
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach().clone()


def pair(values: tuple[int, ...]) -> tuple[int, int]:
    """Return the stride or padding of a 2-d convolution with its length in the type."""
    height, width = values
    return height, width


@dataclass(frozen=True)
class Geometry:
    """How a weight [O, I], [O, I/groups, k] or [O, I/groups, kh, kw] is applied to an activation."""

    in_channels: int
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @classmethod
    def of(cls, layer: Layer) -> "Geometry":
        """Read a layer. Raises `UnsupportedError` for padding other than a number of zeros."""
        if isinstance(layer, nn.Linear):
            return cls(layer.in_features)
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise UnsupportedError(
                f"{type(layer).__name__} with padding {layer.padding!r}, mode {layer.padding_mode!r}: expected a "
                "number of zeros"
            )
        return cls(layer.in_channels, layer.stride, layer.padding, layer.dilation, layer.groups)

    @property
    def spatial(self) -> int:
        """How many axes follow the channel axis of an activation; 0: linear, whose channels stand last."""
        return len(self.stride)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the layer's product of `x` and `weight`, plus `bias`."""
        if not self.stride:
            return F.linear(x, weight, bias)
        convolve = F.conv1d if self.spatial == 1 else F.conv2d
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def along_in(self, values: Tensor) -> Tensor:
        """Shape one value an input channel [I] so that it broadcasts to an activation."""
        return values.reshape(-1, *(1,) * self.spatial)

    def along_out(self, values: Tensor) -> Tensor:
        """Shape one value an output channel [O] so that it broadcasts to a weight."""
        return values.reshape(-1, *(1,) * (self.spatial + 1))


def rows(weight: Tensor) -> Tensor:
    """Return a weight as [O, everything else]."""
    return weight.flatten(1)
