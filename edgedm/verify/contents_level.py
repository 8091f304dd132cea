"""Level "weights" of a graph: the integers, scales and tables in the file are the checkpoint's, bit for bit.

Nothing here is computed but the lookup of table rows, which is run at both ends of every timestep bin: a row that is
one bin off, or a column taken for another, shows as a wrong number. A dilation is the quantiser's divisor, or what the
norm before was divided by in float32, as `FoldWeightDilation` does. Of an optimised graph the scales, thresholds, means
and steps of binary layers and the other float parameters are left out, since passes fold them into other constants;
what they became is held by the levels that run the graph.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedm.models.denoiser import Denoiser
from edgedm.ops import unpack_codes
from edgedm.quant.inference import ActivationQuantizer
from edgedm.quant.integer import QuantLayer, UniformQuantizer
from edgedm.quant.running import RUNNING_LAYERS, RUNNING_QUANTIZERS
from edgedm.verify.cut import Atlas, Quantiser, path_of
from edgedm.verify.fused import Fused, Grid, find_fused, is_dilated, named, to_torch
from edgedm.verify.graphs import Part
from edgedm.verify.report import Level, Row
from edgedm.verify.whole_graph import WholeGraph

Array = NDArray[Any]
DEMAND = "integers, zero points, steps and tables are the checkpoint's, bit for bit; exported, all that is stored"
_COMPARED_APART = ("bits", "bits2", "edges", "table")
"""Buffers that have a comparison of their own."""
_PACKED = {
    **dict.fromkeys(("UnpackBits", "UnpackBitsLinear"), 0),
    **dict.fromkeys(("BinaryConv", "BinaryGemm", "BinaryWeightConv", "BinaryWeightGemm"), 1),
}
"""Ops that read packed signs, and which operand those are."""


def contents_level(graph: WholeGraph, module: Denoiser, trained: int) -> Level:
    """Compare everything that is stored; `trained` is the number of training timesteps."""
    comparison = _Comparison(graph, module.unet, trained)
    note = f"expected the bodies of this version, got others of {', '.join(graph.altered)}" if graph.altered else ""
    rows, values = [Row("functions of the ops", not note, {}, note)], 0
    for path, layer in module.unet.named_modules():
        if isinstance(layer, UniformQuantizer) and path.endswith(".activation"):
            continue  # compared with its layer, whose product leads to it
        if isinstance(layer, ActivationQuantizer) and (layer.step is None or not comparison.exported):
            continue  # a dynamic step is stored nowhere
        if isinstance(layer, (*RUNNING_LAYERS, *RUNNING_QUANTIZERS)):
            comparison.values = 0
            note = next((each for each in comparison.complaints(path, layer) if each), "")
            rows.append(Row(f"{type(layer).__name__} {path}", not note, {"values": float(comparison.values)}, note))
            values += comparison.values
    if module.taps:
        note = comparison.anywhere("cache_coefficients", module.cache_coefficients)
        rows.append(Row("cache_coefficients", not note, {"values": float(module.cache_coefficients.numel())}, note))
    if comparison.exported:  # passes fold these into other constants
        for name, parameter in module.unet.named_parameters():
            note = comparison.anywhere(name, parameter)
            rows.append(Row(name, not note, {"values": float(parameter.numel())}, note))
    return Level("weights", DEMAND, tuple(rows), {"layers": float(len(rows)), "values": float(values)})


class _Comparison:
    """Looks up what a module holds in torch and in the graph."""

    def __init__(self, graph: WholeGraph, unet: nn.Module, trained: int) -> None:
        self.graph, self.trained, self.atlas = graph, trained, Atlas(graph)
        self.norms = {path: each for path, each in unet.named_modules() if isinstance(each, nn.GroupNorm)}
        self.timestep = next((name for name, role in graph.info.inputs.items() if role == "timestep"), "timestep")
        self.exported = graph.info.level == "exported"
        self.values = 0

    def complaints(self, path: str, layer: nn.Module) -> Iterator[str]:
        """Yield what is off with one layer."""
        if isinstance(layer, UniformQuantizer):
            yield from self._quantiser(path, layer, layer)
        elif isinstance(layer, QuantLayer):
            yield from self._quant_layer(path, layer)
        else:
            yield from self._signs(path, layer)
            for name, stored in layer.named_buffers(recurse=False) if self.exported else ():
                if name not in _COMPARED_APART:
                    yield self.anywhere(f"{path}.{name}", stored)

    def anywhere(self, name: str, stored: Tensor) -> str:
        """A constant whose node can't be told: the graph holds these numbers under their own name, or else any.

        Equal constants of an exported graph are one, under one of their names; passes may reuse a name.
        """
        wanted = stored.detach().numpy()
        self.values += wanted.size
        own = self.graph.constants.get(name) if self.exported else None
        for held in self.graph.constants.values() if own is None else (own,):
            if held.size == wanted.size and wanted.size and held.dtype == wanted.dtype:
                same = np.array_equal(held.reshape(-1), wanted.reshape(-1))
                turned = wanted.ndim == 2 and np.array_equal(held.reshape(wanted.T.shape), wanted.T)
                if same or turned:
                    return ""
        if own is not None and own.size == wanted.size:
            return self._equal(name, own.reshape(-1), wanted.reshape(-1)) or f"{name}: unexpected dtype {own.dtype}"
        return f"no constant of the graph holds the checkpoint's {name} {list(wanted.shape)}"

    def _quant_layer(self, path: str, layer: QuantLayer) -> Iterator[str]:
        weight, product = self.atlas.weight(path), self.atlas.product(path)
        fused = None if self.exported or weight is not None else find_fused(self.atlas, path, layer)
        if fused is not None:
            yield from self._fused(path, layer, fused)
            return
        if weight is None or product is None:
            yield "the graph has no DequantizeLinear of its weight, or no product that reads it"
            return
        codes = unpack_codes(layer.codes, layer.weight_bits, layer.shape)
        stored = {"weight code": codes, "weight step": layer.step, "weight zero point": layer.zero}
        for operand, (name, tensor) in zip(weight.input, stored.items(), strict=True):
            yield self._equal(name, self.graph.constants[operand], tensor.numpy())
        if layer.activation is not None:
            yield from self._quantiser(path, layer, layer.activation)
        if layer.bias is not None:
            yield self.anywhere(f"{path}.bias", layer.bias)

    def _fused(self, path: str, layer: QuantLayer, fused: Fused) -> Iterator[str]:
        """A layer that became one node; scales that were merged with others are left out."""
        operands = {role: self.graph.constants.get(name) for role, name in fused.operands.items()}
        codes, zero, multiplier, addend = (operands[r] for r in ("weight", "weight_zero", "multiplier", "addend"))
        if codes is None or zero is None or multiplier is None or addend is None:
            yield "its weight or its scales are no constants"
            return
        stored = unpack_codes(layer.codes, layer.weight_bits, layer.shape).numpy()
        yield self._equal("weight code", to_torch(codes, fused.product), stored)
        yield self._equal("weight zero point", zero, layer.zero.numpy())
        if not fused.merged(path):
            yield self._equal("weight step", multiplier, layer.step.numpy())
            bias = np.zeros(len(zero)) if layer.bias is None else layer.bias.numpy()
            yield self._equal("bias", addend, bias)
        if layer.activation is None:
            yield "it quantises an activation that PyTorch does not"
            return
        grid = fused.grid
        if [grid.step, grid.zero] != [fused.operands["step"], fused.operands["zero"]]:
            yield "quantiser and product read different steps or zero points"
        if grid.divisor is not None:
            expected = np.ones(1) if layer.dilation is None else layer.dilation.numpy().reshape(-1)
            yield self._equal("dilation", self.graph.constants[grid.divisor].reshape(-1), expected)
        elif grid.norm is not None:
            yield from self._divided_norm(grid.norm, layer)
        elif is_dilated(layer):
            yield "its dilation is missing"
        yield from self._fused_grid(grid, layer.activation)

    def _divided_norm(self, node: onnx.NodeProto, layer: QuantLayer) -> Iterator[str]:
        """The norm before a layer has absorbed its dilation: gamma and beta are the checkpoint's, divided."""
        path, operands = path_of(node), named(node)
        norm = self.norms.get(path)
        if norm is None or norm.weight is None or norm.bias is None:
            yield f"its dilation is missing: the norm before it, {path or node.name!r}, has no gamma of the checkpoint"
            return
        assert layer.dilation is not None
        dilation = layer.dilation.numpy().reshape(-1)
        for role, name, parameter in (("gamma", "weight", norm.weight), ("beta", "bias", norm.bias)):
            held, own = self.graph.constants.get(operands[role]), parameter.detach().numpy()
            if held is None or own.shape != dilation.shape:
                yield f"its dilation is missing: {path}.{name} is no constant of {dilation.size} channels"
            else:
                yield self._equal(f"{path}.{name} / dilation", held, (own / dilation).astype(np.float32))

    def _fused_grid(self, grid: Grid, stored: UniformQuantizer) -> Iterator[str]:
        if grid.bits != stored.bits:
            yield f"codes: expected {stored.bits} bits, got {grid.bits}"
        yield from self._rows([grid.step, grid.zero], stored)

    def _quantiser(self, path: str, owner: nn.Module, stored: UniformQuantizer) -> Iterator[str]:
        fused = None if self.exported else find_fused(self.atlas, path, owner)
        if fused is not None:
            yield from self._fused_grid(fused.grid, stored)
            return
        found = self.atlas.quantiser(path, owner)
        if found is None:
            yield "the graph has no QuantizeLinear and DequantizeLinear before its product"
            return
        yield self._grid(found, stored)
        if isinstance(owner, QuantLayer) and owner.dilation is not None:
            divisor = self.atlas.divisor(found)
            if divisor is None:
                yield "its input is not divided by its dilation"
            else:
                held = self.graph.constants[divisor].reshape(-1)
                yield self._equal("dilation", held, owner.dilation.numpy().reshape(-1))
        if list(found.quantize.input[1:]) != list(found.dequantize.input[1:]):
            yield "QuantizeLinear and DequantizeLinear read different steps or zero points"
        yield from self._rows(list(found.quantize.input[1:]), stored)

    def _grid(self, found: Quantiser, stored: UniformQuantizer) -> str:
        top = 2**stored.bits - 1
        kind = "uint4" if stored.bits == 4 else "uint8"
        zero = self.graph.dtype(found.quantize.input[2])
        clip = None if found.clip is None else int(self.graph.constants[found.clip.input[2]])
        if zero != kind or clip != (None if stored.bits in (4, 8) else top):
            return f"codes: expected {kind} of {stored.bits} bits, got {zero} clipped to {clip}"
        return ""

    def _rows(self, names: list[str], stored: UniformQuantizer) -> Iterator[str]:
        """Every table row at both ends of its bin, or the one row of a quantiser without a table."""
        operands = [self._readable(name) for name in names]
        table = stored.table.numpy()
        held = [operand in self.graph.constants for operand in operands]
        if all(held):
            values = [self.graph.constants[operand].reshape(-1) for operand in operands]
            if len(table) > 1:
                yield f"a constant grid in place of a table of {len(table)} rows"
            yield self._row(np.concatenate([each.astype(np.float64) for each in values]), table[0], "")
            return
        part = self._lookup([operand for operand in operands if operand not in self.graph.constants])
        edges = stored.edges.tolist() if len(table) > 1 else [0]
        for row, (first, after) in enumerate(zip(edges, [*edges[1:], self.trained], strict=True)):
            for timestep in {first, after - 1}:
                now = {**self.graph.constants, **part.run({self.timestep: np.array([timestep], np.int64)})}
                values = [np.asarray(now[operand]).reshape(-1) for operand in operands]
                got = np.concatenate([each.astype(np.float64) for each in values])
                yield self._row(got, table[row], f" of row {row} at timestep {timestep}")

    def _readable(self, name: str) -> str:
        """`name`, or what it is cast from: ONNX Runtime hands no uint4 to numpy."""
        maker = self.graph.maker(name)
        packed = self.graph.dtype(name) == "uint4" and maker is not None and maker.op_type == "Cast"
        return maker.input[0] if maker is not None and packed else name

    def _lookup(self, operands: list[str]) -> Part:
        return self.graph.part([self.timestep], operands)

    def _row(self, got: Array, stored: Array, where: str) -> str:
        self.values += stored.size
        heads = stored.size // 2
        expected = stored.astype(np.float64)
        if got.shape != expected.shape:
            return f"grid{where}: expected {heads} steps and zero points, got {got.size} numbers"
        off = np.flatnonzero(got != expected)
        if not off.size:
            return ""
        place = int(off[0])
        what = f"activation {'step' if place < heads else 'zero point'}{where}"
        what += f", head {place % heads}" if heads > 1 else ""
        return f"{what}: expected {expected[place]:.9g}, got {got[place]:.9g}"

    def _signs(self, path: str, layer: nn.Module) -> Iterator[str]:
        """The packed weight, and that of a second basis; an op reads each, under its own name if it kept that."""
        read = [node.input[_PACKED[node.op_type]] for node in self.atlas.nodes(path, *_PACKED)]
        names = {f"{path}.{name}" for name in ("bits", "bits2")}
        for name in ("bits", "bits2"):
            stored = getattr(layer, name, None)
            if not isinstance(stored, Tensor):  # absent, or the width of an activation
                continue
            own = f"{path}.{name}"
            candidates = [own] if own in self.graph.constants else [each for each in read if each not in names]
            known = [each for each in candidates if each in self.graph.constants]
            if not known:
                yield f"its packed weight {name} is not in the graph"
            elif not any(not self._equal(name, self.graph.constants[each], stored.numpy()) for each in known):
                yield self._equal(f"packed weight {name}", self.graph.constants[known[0]], stored.numpy())

    def _equal(self, what: str, held: Array, stored: Array) -> str:
        self.values += stored.size
        if held.shape != stored.shape:
            return f"{what}: expected shape {list(stored.shape)}, got {list(held.shape)}"
        off = np.argwhere(held.astype(np.float64) != stored.astype(np.float64))
        if not len(off):
            return ""
        place = tuple(int(index) for index in off[0])
        return (
            f"{what} {list(place)}: expected {float(stored[place]):.9g}, got {float(held[place]):.9g} "
            f"({len(off)} of {stored.size} differ)"
        )
