"""Layers of integers in an optimised graph: the product that became one node, and the quantiser before it.

    codes = QuantizeUniform(x, divisor, step, zero)                y = QuantConv(codes, zero, weight, ..., step, ...)
    codes = GroupNormSiluQuantizeUniform(x, ..., step, zero)       y = QuantGemm(...)
    codes = QuantizeHeads(x, step, zero)

Between them may stand an UpsampleNearest, which repeats codes as the layer's input repeats pixels.

A quantiser inside a norm, or whose dilation went into the norm before it, has no input of its own; a product whose
scales or bias were merged with what stands behind it gives something else than its layer.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from edgedm.quant.integer import QuantLayer, UniformQuantizer
from edgedm.verify.cut import Atlas
from edgedm.verify.graphs import Array
from edgedm.verify.rounding import attribute
from edgedm.verify.subject import roles

_PRODUCTS = ("QuantConv", "QuantGemm")
_QUANTISERS = ("QuantizeUniform", "QuantizeHeads", "GroupNormSiluQuantizeUniform")


@dataclass(frozen=True)
class Grid:
    """A quantiser node and its operands' names: `x` is None where what it quantises has no place of its own in the
    graph, `divisor` where there is none. `norm` is the GroupNorm that should have absorbed the dilation: the one before
    a quantiser of a dilated layer that divides by nothing itself. `repeat` is the UpsampleNearest behind the quantiser.
    """

    node: onnx.NodeProto
    x: str | None
    divisor: str | None
    step: str
    zero: str
    bits: int
    norm: onnx.NodeProto | None = None
    repeat: onnx.NodeProto | None = None

    @property
    def codes(self) -> str:
        """The value that it makes, upsampled where it is."""
        return str((self.repeat or self.node).output[0])

    def pixels(self, x: Array) -> Array:
        """What the quantiser reads of a layer's input [N, C, H, W]: one pixel of each that are repeated."""
        if self.repeat is None:
            return x
        factor = int(attribute(self.repeat, "factor", 2))
        return x[..., ::factor, ::factor]


@dataclass(frozen=True)
class Fused:
    """A layer: its product, None for a quantiser alone, and its grid; `operands` are the product's by role."""

    grid: Grid
    product: onnx.NodeProto | None
    operands: dict[str, str]

    def merged(self, path: str) -> bool:
        """Whether the product's scale or bias holds more than the layer's own."""
        own = {"multiplier": (f"{path}.step",), "addend": (f"{path}.bias",)}
        names = {role: self.operands.get(role, "") for role in own}
        return any(names[role] not in own[role] and not names[role].startswith("neutral.") for role in own)


def find_fused(atlas: Atlas, path: str, module: nn.Module) -> Fused | None:
    """Look up a `QuantLayer` or `UniformQuantizer` by its path; None if no such node comes from it."""
    if isinstance(module, UniformQuantizer):
        own = atlas.nodes(path, *_QUANTISERS)
        return Fused(_grid(atlas, own[0], False), None, {}) if len(own) == 1 else None
    products = atlas.nodes(path, *_PRODUCTS) if isinstance(module, QuantLayer) else []
    if len(products) != 1:
        return None
    assert isinstance(module, QuantLayer)
    operands = named(products[0])
    quantiser, repeat = atlas.graph.maker(operands["codes"]), None
    if quantiser is not None and quantiser.op_type == "UpsampleNearest":
        quantiser, repeat = atlas.graph.maker(quantiser.input[0]), quantiser
    if quantiser is None or quantiser.op_type not in _QUANTISERS:
        return None
    grid = replace(_grid(atlas, quantiser, is_dilated(module)), repeat=repeat)
    return Fused(grid, products[0], operands)


def is_dilated(layer: QuantLayer) -> bool:
    """Whether the layer divides its input by anything but 1."""
    return layer.dilation is not None and bool((layer.dilation != 1).any())


def _grid(atlas: Atlas, node: onnx.NodeProto, dilated: bool) -> Grid:
    names = named(node)
    divisor = names.get("divisor")
    if divisor is not None and np.array_equal(atlas.graph.constants[divisor].reshape(-1), [1]):
        divisor = None
    inside = node.op_type.startswith("GroupNorm")
    norm = _norm_before(atlas, names["x"]) if dilated and divisor is None and not inside else None
    x = None if inside or norm is not None else names["x"]
    return Grid(node, x, divisor, names["step"], names["zero"], int(attribute(node, "bits", 4)), norm)


def _norm_before(atlas: Atlas, name: str) -> onnx.NodeProto | None:
    """The norm that makes `name`, turned round or not. A division doesn't move through the SiLU of another norm op."""
    maker = atlas.graph.maker(name)
    while maker is not None and maker.op_type == "Transpose":
        maker = atlas.graph.maker(maker.input[0])
    return maker if maker is not None and maker.op_type == "GroupNorm" else None


def named(node: onnx.NodeProto) -> dict[str, str]:
    """Names of a node's operands by role."""
    return dict(zip(roles(node), node.input, strict=True))


def to_graph(array: Array, product: onnx.NodeProto | None) -> Array:
    """Torch's layout to the graph's: channels last for convolutions, as it is for everything else."""
    moves = product is not None and product.op_type == "QuantConv"
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if moves else array


def to_torch(array: Array, product: onnx.NodeProto | None) -> Array:
    """The graph's layout to torch's."""
    moves = product is not None and product.op_type == "QuantConv"
    return np.ascontiguousarray(np.moveaxis(array, -1, 1)) if moves else array


def row_of(stored: UniformQuantizer, timestep: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and zero points of a stored table at `timestep`; they broadcast to [N, H, L, d] where there are heads."""
    row = int(np.searchsorted(stored.edges.numpy(), timestep, side="right")) - 1
    values = stored.table.numpy()[max(row, 0)].astype(np.float64)
    step, zero = values[: stored.heads], values[stored.heads :]
    shape = () if stored.heads == 1 else (-1, 1, 1)
    return step.reshape(shape), zero.reshape(shape)
