"""Judge a fused layer of integers alone, as `graph_layers` does one between QuantizeLinear and its product.

The quantiser's codes must be those of PyTorch in float64 on the same input, but for ties within rounding. The product
is then fed these codes and a residual of 0, and must be within the running error bound of PyTorch's float64 layer on
what the codes mean on PyTorch's own grid: a step or a zero point of another row shows there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgedm.quant.integer import QuantLayer, UniformQuantizer
from edgedm.verify.comparison import Flips, relative_error
from edgedm.verify.fused import Fused, row_of, to_graph, to_torch
from edgedm.verify.graphs import Array
from edgedm.verify.judge import judge_codes, judge_floats
from edgedm.verify.rounding import Bounded
from edgedm.verify.torch_reference import TorchReference
from edgedm.verify.whole_graph import WholeGraph

MISSING = "the graph doesn't have this layer by itself"


@dataclass
class Tally:
    """What one layer did at all moments."""

    use: float = 0.0
    operations: int = 0
    flips: Flips = field(default_factory=Flips)
    complaint: str = ""
    error: float | None = None  # of the product at the moment that is looked at, relative to float64
    moments: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """A layer of integers: its path, its module in float32, and its nodes."""

    path: str
    layer: nn.Module
    fused: Fused

    @property
    def grid(self) -> UniformQuantizer:
        """The quantiser as it is stored."""
        if isinstance(self.layer, UniformQuantizer):
            return self.layer
        assert isinstance(self.layer, QuantLayer) and self.layer.activation is not None
        return self.layer.activation


def judge_fused(
    graph: WholeGraph,
    reference: TorchReference,
    place: Place,
    x: NDArray[np.float32],
    timestep: Mapping[str, Array],
    tally: Tally,
) -> str | None:
    """What is off with one layer that is given `x` in PyTorch; `timestep` are the graph's inputs of that role."""
    fused = place.fused
    now = int(next(iter(timestep.values()))[0]) if timestep else 0
    step, zero = row_of(place.grid, now)
    method = "quantized_input" if fused.product is not None else "forward"
    exact = np.rint(reference.layer(place.path, x, method) / step) + zero
    codes = to_graph(exact, fused.product).astype(np.uint8)
    if codes.shape != graph.shape(fused.grid.codes):
        return MISSING
    if fused.grid.x is not None:
        feeds = {**timestep, fused.grid.x: to_graph(fused.grid.pixels(x), fused.product)}
        part = graph.part(list(feeds), [fused.grid.codes])
        got = part.run(feeds)[fused.grid.codes]
        low, high = (part.evaluate(feeds, lean)[fused.grid.codes].value for lean in (-1, 1))
        complaint, flips = judge_codes(got, codes, low, high)
        tally.flips += flips
        if complaint:
            return f"activation: {complaint}"
        codes = got
    if fused.product is None or fused.merged(place.path):
        return None
    meaning = (to_torch(codes.astype(np.float64), fused.product) - zero) * step
    return _product(graph, reference, place, codes, meaning, timestep, tally)


def _product(
    graph: WholeGraph,
    reference: TorchReference,
    place: Place,
    codes: Array,
    meaning: NDArray[np.float64],
    timestep: Mapping[str, Array],
    tally: Tally,
) -> str | None:
    product, operands = place.fused.product, place.fused.operands
    assert product is not None
    feeds = {**timestep, operands["codes"]: codes}
    if operands["residual"] not in graph.constants:
        feeds[operands["residual"]] = np.zeros(graph.shape(operands["residual"]), np.float32)
    name = product.output[0]
    part = graph.part(list(feeds), [name])
    got, bounded = part.run(feeds)[name], part.evaluate(feeds)[name]
    exact = to_graph(reference.layer(place.path, meaning, "product"), product)
    if got.shape != exact.shape:
        return f"product: expected shape {list(exact.shape)}, got {list(got.shape)}"
    tally.error = relative_error(got, exact)
    complaint, use, _ = judge_floats(got, Bounded(exact, bounded.bound, bounded.operations), exact, exact)
    tally.use, tally.operations = max(tally.use, use), max(tally.operations, bounded.operations)
    return complaint and f"product: {complaint}"
