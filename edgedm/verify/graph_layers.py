"""Level "layer" of a graph, teacher-forced: every low-bit layer on the inputs that it has in PyTorch.

A layer is cut out of the graph and run alone under ONNX Runtime. Its codes must be those of float64 arithmetic on the
same input, unless a boundary lies within the rounding of the float32 quotient; its product is then fed the graph's own
quantised activation, so that no decision is left, and must be within the running error bound of PyTorch's float64
layer on the same numbers. What the passes fused into other nodes has no ends of its own, and is counted; they fuse
no layer of integers, so one that has no ends is off, as is any layer of an exported graph.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgedm import progress
from edgedm.quant.inference import LOW_BIT_LAYERS, BinaryWeightConv2d, BinaryWeightLinear, quantize_signed
from edgedm.quant.integer import QuantLayer, UniformQuantizer
from edgedm.quant.running import RUNNING_LAYERS, RUNNING_QUANTIZERS
from edgedm.verify.comparison import Flips, relative_error, snr_db
from edgedm.verify.cut import Atlas, Cut
from edgedm.verify.fused import Fused, find_fused
from edgedm.verify.fused_layers import MISSING, Place, Tally, judge_fused
from edgedm.verify.graphs import Array
from edgedm.verify.judge import judge_floats
from edgedm.verify.report import Level, Row
from edgedm.verify.rounding import Bounded
from edgedm.verify.sampling import deal
from edgedm.verify.torch_reference import Moment, TorchReference
from edgedm.verify.whole_graph import WholeGraph, feeds_of

DEMAND = "codes as in float64 unless a boundary lies within rounding; products within gamma_n"
_ALONE = (QuantLayer, UniformQuantizer)
"""Layers that no pass fuses with others."""
_BINARY_WEIGHTS = (BinaryWeightConv2d, BinaryWeightLinear)


def graph_layer_level(
    graph: WholeGraph,
    reference: TorchReference,
    moments: Sequence[tuple[Moment, int]],
    share: Callable[[int], int | None] = lambda _: None,
) -> Level:
    """Judge every layer at all `moments`, each with the number of the image; or `share` of their number at each."""
    bench = _Bench(graph, reference)
    sample = share(len(bench.layers))
    chosen = deal(list(bench.layers), lambda path: type(bench.layers[path]).__name__, len(moments), sample)
    for (moment, image), paths in zip(moments, chosen, strict=True):
        bench.run(moment, image, paths)
    rows = tuple(_row(name, tally) for name, tally in bench.tallies.items())
    total = sum((tally.flips for tally in bench.tallies.values()), Flips())
    figures = {
        "layers": float(len(rows)),
        "left_out": float(len(bench.layers) - len({path for paths in chosen for path in paths})),
        "layers.fused": float(len(bench.fused)),
        "quantisers.fused": float(sum(each.grid.x is None for each in bench.nodes.values())),
        "products.fused": float(sum(each.merged(path) for path, each in bench.nodes.items() if each.product)),
        "worst_use_of_bound": max((row.figures["use of bound"] for row in rows), default=0.0),
        "codes": float(total.codes),
        "flips": float(total.total),
    }
    if not rows:
        rows = (Row("(every layer is fused with others)" if bench.fused else "(no low-bit layers)", True),)
    return Level("layer", DEMAND, rows, figures)


def _row(name: str, tally: Tally) -> Row:
    complaint = tally.complaint or tally.flips.complaint() or ""
    figures = {"n": float(tally.operations), "use of bound": tally.use}
    if tally.flips.codes:
        figures |= {"codes": float(tally.flips.codes), "flips": float(tally.flips.total)}
    return Row(name, not complaint, figures, complaint, tuple(tally.moments))


class _Bench:
    """Runs layers alone, in the graph and in PyTorch."""

    def __init__(self, graph: WholeGraph, reference: TorchReference) -> None:
        self.graph, self.reference = graph, reference
        self.tallies: dict[str, Tally] = {}
        self.fused: set[str] = set()
        unet = reference.modules[32].unet
        inside = {id(each.activation) for each in unet.modules() if isinstance(each, QuantLayer)}
        kinds = (*RUNNING_LAYERS, *RUNNING_QUANTIZERS)
        self.layers = {
            path: each for path, each in unet.named_modules() if isinstance(each, kinds) and id(each) not in inside
        }
        atlas = Atlas(graph, self.layers)
        self.exported = graph.info.level == "exported"
        self.cuts: dict[str, Cut | None] = {}
        self.nodes: dict[str, Fused] = {}
        for path, layer in self.layers.items():
            standard = self.exported or not isinstance(layer, LOW_BIT_LAYERS)
            self.cuts[path] = atlas.cut(path, layer) if standard else None
            fused = None if self.exported or self.cuts[path] else find_fused(atlas, path, layer)
            if fused is not None:
                self.nodes[path] = fused

    def run(self, moment: Moment, image: int, paths: Sequence[str]) -> None:
        """Judge the layers at `paths` on what they are given at one moment."""
        inputs = self.reference.layer_inputs(moment, image, tuple({type(each) for each in self.layers.values()}))
        label = int(moment.labels[image])
        text = None if moment.texts is None else moment.texts[image]
        given = dict(feeds_of(self.graph, moment.timestep, moment.x[image], label, None, text))
        others = {name: array for name, array in given.items() if self.graph.info.inputs.get(name) == "timestep"}
        for path in progress.track(paths, f"layers at step {moment.step}", len(paths)):
            layer = self.layers[path]
            cut, node = self.cuts[path], self.nodes.get(path)
            found = cut is not None and path in inputs and self.graph.shape(cut.x) == inputs[path].shape
            if not found and not self.exported and not isinstance(layer, _ALONE):
                self.fused.add(path)
                continue
            tally = self.tallies.setdefault(f"{type(layer).__name__} {path}", Tally())
            complaint: str | None = MISSING
            tally.error, before = None, tally.flips
            if node is not None and path in inputs:
                place = Place(path, layer, node)
                complaint = judge_fused(self.graph, self.reference, place, inputs[path], others, tally)
            elif found and cut is not None:
                complaint = self._judge(tally, path, layer, cut, inputs[path], others)
            tally.moments.append(_moment(moment.step, tally, before))
            if complaint and not tally.complaint:
                tally.complaint = f"step {moment.step}, image {image}: {complaint}"

    def _judge(
        self,
        tally: Tally,
        path: str,
        layer: nn.Module,
        cut: Cut,
        x: NDArray[np.float32],
        others: Mapping[str, Array],
    ) -> str | None:
        """What is off with one layer; the quantiser first, then the product."""
        source, reference = cut.x, self.reference
        if cut.middle is not None and cut.middle != source:
            if isinstance(layer, QuantLayer):
                exact = reference.layer(path, x, "quantized_input")
            elif isinstance(layer, RUNNING_QUANTIZERS):
                exact = reference.layer(path, x)
            else:
                exact = _on_grid(layer, x)
            got, complaint = self._half(tally, (source, cut.middle), {**others, source: x}, exact, decides=True)
            if complaint:
                return f"activation: {complaint}"
            source, x = cut.middle, got
        if cut.y is None:
            return None
        method = "product" if isinstance(layer, QuantLayer) else "forward"  # forward keeps what lies on the grid
        decides = cut.middle is None and isinstance(layer, _BINARY_WEIGHTS)
        feeds = {source: x}
        _, complaint = self._half(
            tally, (source, cut.y), feeds, reference.layer(path, x, method), decides, counts=False
        )
        return complaint and f"product: {complaint}"

    def _half(
        self,
        tally: Tally,
        ends: tuple[str, str],
        feeds: Mapping[str, Array],
        exact: Array,
        decides: bool,
        counts: bool = True,
    ) -> tuple[Array, str | None]:
        """Run a piece of the graph and hold it against `exact`; returns what came and what is off.

        `decides`: rounding may explain another code. `counts`: each element is one code, so flips can be counted.
        """
        part = self.graph.part(list(feeds), [ends[1]])
        got = part.run(feeds)[ends[1]]
        if got.shape != exact.shape:
            return got, f"expected shape {list(exact.shape)}, got {list(got.shape)}"
        bounded = part.evaluate(feeds)[ends[1]]
        tally.error = relative_error(got, exact)
        expected = Bounded(exact, bounded.bound, bounded.operations)
        low = high = exact
        if decides and np.any(np.abs(got - exact) > bounded.bound):
            low, high = (part.evaluate(feeds, lean)[ends[1]].value for lean in (-1, 1))
        complaint, use, flips = judge_floats(got, expected, low, high)
        tally.use, tally.operations = max(tally.use, use), max(tally.operations, bounded.operations)
        if decides and counts:
            tally.flips += Flips(int(got.size), flips.up, flips.down)
        return got, complaint


def _moment(step: int, tally: Tally, before: Flips) -> dict[str, float]:
    """What a layer did at one step, for the plots over timesteps."""
    found = {
        "step": float(step),
        "codes": float(tally.flips.codes - before.codes),
        "flips": float(tally.flips.total - before.total),
    }
    return found if tally.error is None else found | {"snr_db": snr_db(tally.error)}


def _on_grid(layer: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """What a layer with binary weights multiplies, in float64."""
    assert isinstance(layer, _BINARY_WEIGHTS) and layer.step is not None
    values: NDArray[np.float64] = quantize_signed(
        torch.from_numpy(x).double(), layer.step.double(), layer.activation_bits
    ).numpy()
    return values
