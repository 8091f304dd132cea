"""Find the layers of a checkpoint in a graph: where a module begins, where its activation is quantised, where it ends.

Nodes carry the path of the module that they come from, but equal computations of two modules are one node of the
graph (three projections of one input may share a quantiser). So a `QuantLayer` is followed from what is its own: its
weight, and the product that reads it.
"""

from collections.abc import Collection
from dataclasses import dataclass

import onnx
from torch import nn

from edgedm.export.graph_io import MODULE_KEY
from edgedm.quant.inference import BinaryWeightConv2d, BinaryWeightLinear
from edgedm.quant.integer import QuantLayer
from edgedm.quant.running import RUNNING_QUANTIZERS
from edgedm.verify.graphs import Graph

_PRODUCTS = ("Conv", "MatMul", "Gemm")
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")


@dataclass(frozen=True)
class Cut:
    """A module in the graph: it reads `x`, quantises it to `middle`, and gives `y`; either half may be missing."""

    x: str
    middle: str | None
    y: str | None


@dataclass(frozen=True)
class Quantiser:
    """A QuantizeLinear and its DequantizeLinear, which may have a Clip between them."""

    quantize: onnx.NodeProto
    clip: onnx.NodeProto | None
    dequantize: onnx.NodeProto


class Atlas:
    """Looks modules up in a graph by their paths; `layers` are those of the modules that are looked up."""

    def __init__(self, graph: Graph, layers: Collection[str] = ()) -> None:
        self.graph, self._layers = graph, frozenset(layers)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._of: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.proto.graph.node:
            self._of.setdefault(path_of(node), []).append(node)
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def nodes(self, path: str, *ops: str) -> list[onnx.NodeProto]:
        """Nodes of the module at `path` itself, of these op types."""
        return [node for node in self._of.get(path, []) if not ops or node.op_type in ops]

    def weight(self, path: str) -> onnx.NodeProto | None:
        """The DequantizeLinear of the weight of the `QuantLayer` at `path`."""
        own = (node for node in self.nodes(path, "DequantizeLinear") if node.input[0] in self.graph.constants)
        return next(own, None)

    def product(self, path: str) -> onnx.NodeProto | None:
        """The node that multiplies the weight of the `QuantLayer` at `path` with its activation."""
        weight = self.weight(path)
        pending = [] if weight is None else [weight.output[0]]
        while pending:
            for reader in self._readers.get(pending.pop(), []):
                if reader.op_type in _PRODUCTS:
                    return reader
                if reader.op_type in _MOVES:
                    pending.append(reader.output[0])
        return None

    def quantiser(self, path: str, module: nn.Module) -> Quantiser | None:
        """The activation quantiser of a layer, or the one that `module` itself is."""
        if isinstance(module, QuantLayer):
            product = self.product(path)
            return None if product is None else self._ending(product.input[0])
        found = self.nodes(path, "DequantizeLinear")
        return self._ending(found[0].output[0]) if found else None

    def divisor(self, quantiser: Quantiser) -> str | None:
        """The constant by which a quantiser's input is divided, if it is."""
        divide = self.graph.maker(quantiser.quantize.input[0])
        divided = divide is not None and divide.op_type == "Div" and divide.input[1] in self.graph.constants
        return divide.input[1] if divide is not None and divided else None

    def cut(self, path: str, module: nn.Module) -> Cut | None:
        """Where the module begins and ends; None where the graph doesn't have it by itself."""
        if isinstance(module, RUNNING_QUANTIZERS):
            quantiser = self.quantiser(path, module)
            return None if quantiser is None else Cut(quantiser.quantize.input[0], quantiser.dequantize.output[0], None)
        return self._quant_layer(path, module) if isinstance(module, QuantLayer) else self._whole(path, module)

    def _ending(self, name: str) -> Quantiser | None:
        """The quantiser whose values `name` are."""
        dequantize = self.graph.maker(name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return None
        codes, clip = self.graph.maker(dequantize.input[0]), None
        if codes is not None and codes.op_type == "Clip":
            clip, codes = codes, self.graph.maker(codes.input[0])
        return None if codes is None or codes.op_type != "QuantizeLinear" else Quantiser(codes, clip, dequantize)

    def _quant_layer(self, path: str, module: QuantLayer) -> Cut | None:
        product = self.product(path)
        if product is None:
            return None
        middle = x = product.input[0]
        if module.activation is not None:
            quantiser = self._ending(middle)
            if quantiser is None:
                return None
            x = quantiser.quantize.input[0]
        if module.dilation is not None:
            divide = self.graph.maker(x)
            if divide is None or divide.op_type != "Div":
                return None
            x = divide.input[0]
        y = product.output[0]
        if module.bias is not None and len(product.input) < 3:  # MatMul: the bias is added behind it
            added = [node for node in self._readers.get(y, []) if node.op_type == "Add"]
            if len(added) != 1:
                return None
            y = added[0].output[0]
        return Cut(x, middle, y)

    def _whole(self, path: str, module: nn.Module) -> Cut | None:
        """A module whose nodes are its own, but for what it computes of its input as other modules do.

        That is one node of the graph, which has the path of the first of them.
        """
        y = self._end(path)
        nodes = self._inside(path)
        made = {name for node in nodes for name in node.output}
        read = {
            name for node in nodes for name in node.input if name and name not in made
        } - self.graph.constants.keys()
        shared = {name for name in read if self._is_shared(name)}
        outside = read - shared
        pending = list(shared)
        while pending:
            maker = self.graph.maker(pending.pop())
            assert maker is not None  # what is shared has one
            for name in (each for each in maker.input if each and each not in self.graph.constants):
                (pending.append if self._is_shared(name) else outside.add)(name)
        if y is None or len(outside) != 1:
            return None
        middle = None
        if isinstance(module, BinaryWeightConv2d | BinaryWeightLinear) and module.step is not None:
            quantised = {node.output[0] for node in self.nodes(path, "DequantizeLinear")} or shared
            if len(quantised) != 1:
                return None
            (middle,) = quantised
        return Cut(outside.pop(), middle, y)

    def _inside(self, path: str) -> list[onnx.NodeProto]:
        """Nodes of the module at `path` and of those in it."""
        return [node for own, group in self._of.items() if own == path or own.startswith(path + ".") for node in group]

    def _end(self, path: str) -> str | None:
        """What a module gives: of the values that others read of it the one behind the rest; None for several."""
        nodes = self._inside(path)
        made = {name: node for node in nodes for name in node.output}
        ends = {item.name for item in self.graph.proto.graph.output}
        left = {
            name for name in made if name in ends or any(r.output[0] not in made for r in self._readers.get(name, []))
        }
        before: set[str] = set()
        pending = [name for end in left for name in made[end].input]
        while pending:
            name = pending.pop()
            if name in made and name not in before:
                before.add(name)
                pending.extend(made[name].input)
        last = left - before
        return last.pop() if len(last) == 1 else None

    def _is_shared(self, name: str) -> bool:
        """Whether a value is made within a module and not what the module gives: another one computes it too."""
        maker = self.graph.maker(name)
        path = "" if maker is None else path_of(maker)
        return bool(path) and path in self._layers and self._end(path) != name


def path_of(node: onnx.NodeProto) -> str:
    """The torch module that a node comes from; empty for the whole model's own."""
    return next((str(entry.value) for entry in node.metadata_props if entry.key == MODULE_KEY), "")
