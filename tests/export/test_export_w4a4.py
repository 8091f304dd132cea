"""Graphs of uniform quantisers: standard ops that decide as PyTorch does, weights at their real width, tables whole."""

import collections

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from w4a4_model import EDGES, w4a4_checkpoint

from edgedm import ops
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export import export, golden
from edgedm.export.graph_io import MODULE_KEY, load_graph, serialize_graph
from edgedm.export.to_onnx import build_graph, check_layers
from edgedm.models.denoiser import Denoiser
from edgedm.quant.clock import Clock, clock_of
from edgedm.quant.integer import QuantLayer, UniformQuantizer
from edgedm.quant.running import RUNNING_LAYERS, RUNNING_QUANTIZERS
from edgedm.quant.uniform import ActivationTable
from edgedm.quant.uniform_layer import UniformLayer

# Relative to the largest value: float32 sums in another order, through some 20 layers.
STEP = 2e-5
# One code that the two runtimes decide differently (an activation on a tie, to rounding) moves the output by this.
FLIP = 0.3
# One product of at most 72 terms.
PRODUCT = 1e-6


class _One(nn.Module):
    """One layer in the place of a UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = clock_of(self)
        self.layer: nn.Module = nn.Identity()

    def forward(self, x, timestep, class_labels, return_dict):  # as diffusers' UNets, without class embedding
        return (self.layer(x),)


def alone(make) -> Denoiser:
    """`make(clock)` as a model of its own."""
    one = _One()
    one.layer = make(one.clock)
    return Denoiser(one).eval().requires_grad_(False)


def graph_of(module: Denoiser, x: torch.Tensor) -> ir.Model:
    return build_graph(module, {"x": x, "timestep": torch.zeros(1, dtype=torch.int64)})


def run(model: ir.Model, x: torch.Tensor, timestep: int) -> np.ndarray:
    session, feeds = _session(serialize_graph(model)), {"x": x.numpy(), "timestep": np.array([timestep])}
    return session.run(["eps"], {entry.name: feeds[entry.name] for entry in session.get_inputs()})[0]


def _session(model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def table(clock: Clock, bits: int, edges: tuple[int, ...] = (0,), heads: int = 1) -> UniformQuantizer:
    """Steps of 0.25, 0.3 ... and zero points all over the grid."""
    made = ActivationTable(bits, edges, clock, heads)
    count, top = len(edges) * heads, 2**bits - 1
    with torch.no_grad():
        made.step.copy_((0.25 + 0.05 * torch.arange(count)).reshape(len(edges), heads))
        made.zero.copy_(((torch.arange(count) * 5 + top // 3) % (top + 1)).reshape(len(edges), heads))
    return made.to_inference()


def hard(step: float, bits: int) -> torch.Tensor:
    """Every tie and code of the grid and far beyond, their neighbours, zeros."""
    ticks = torch.arange(-(2**bits) - 3, 2**bits + 4) * 0.5 * np.float32(step)
    values = torch.cat([ticks, ticks * (1 + 2e-7), ticks * (1 - 2e-7), torch.tensor([0.0, -0.0, 1e6, -1e6])])
    return values.float().reshape(1, 1, 1, -1)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_ties_and_clipping_are_decided_as_in_torch(bits: int) -> None:
    module = alone(lambda clock: table(clock, bits))
    x = torch.cat([hard(0.25, bits), hard(0.3, bits)], -1)
    model = graph_of(module, x)
    expected = module(x, torch.zeros(1, dtype=torch.int64))[0]
    assert np.array_equal(run(model, x, 0), expected.numpy())
    (quantize,) = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert quantize.outputs[0].dtype == (ir.DataType.UINT4 if bits == 4 else ir.DataType.UINT8)
    assert sum(node.op_type == "Clip" for node in model.graph) == (bits in (2, 6))
    assert not any(node.op_type in ("Cast", "TimestepLookup") for node in model.graph)  # one row: constants


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_every_timestep_takes_the_row_of_its_bin(bits: int) -> None:
    module = alone(lambda clock: table(clock, bits, EDGES))
    x = hard(0.3, bits)
    model = graph_of(module, x)
    seen = set()
    for timestep in (0, 29, 30, 499, 500, 699, 700, 999):
        expected = module(x, torch.tensor([timestep]))[0]
        assert np.array_equal(run(model, x, timestep), expected.numpy())
        seen.add(expected.numpy().tobytes())
    assert len(seen) == len(EDGES)
    assert [node.op_type for node in model.graph if node.domain == ops.DOMAIN] == ["TimestepLookup"]


@pytest.mark.parametrize("edges", [(0,), EDGES])
def test_every_head_has_its_own_grid(edges: tuple[int, ...]) -> None:
    module = alone(lambda clock: table(clock, 4, edges, heads=3))
    x = torch.stack([hard(0.3, 4)[0, 0, 0]] * 3).reshape(1, 3, -1, 1)
    model = graph_of(module, x)
    for timestep in (0, 600):
        expected = module(x, torch.tensor([timestep]))[0]
        assert np.array_equal(run(model, x, timestep), expected.numpy())
        assert len({expected[0, head].numpy().tobytes() for head in range(3)}) == 3
    (quantize,) = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert quantize.attributes["axis"].as_int() == 1


def layer(clock: Clock, kind: nn.Module, weight_bits: int, dilate: bool = False) -> QuantLayer:
    made = UniformLayer(kind, weight_bits, 4, clock, EDGES, dilate=dilate)
    with torch.no_grad():
        made.activation.step.copy_(0.2 + 0.1 * torch.arange(4)[:, None])
        made.activation.zero.copy_(torch.tensor([[7.0], [3], [12], [9]]))
        if dilate:
            made.dilation[::2] = 1.5
    return made.to_inference()


@pytest.mark.parametrize("weight_bits", [2, 4, 6, 8])
@pytest.mark.parametrize("kind", ["linear", "conv", "strided"])
def test_weights_are_stored_at_their_width_and_come_back(kind: str, weight_bits: int) -> None:
    torch.manual_seed(weight_bits)
    if kind == "linear":
        inner, x = nn.Linear(5, 7), torch.randn(1, 3, 5)
    else:
        inner = nn.Conv2d(5, 7, 3, padding=1) if kind == "conv" else nn.Conv2d(5, 7, 3, stride=2, bias=False)
        x = torch.randn(1, 5, 8, 8)
    module = alone(lambda clock: layer(clock, inner, weight_bits, dilate=kind == "conv"))
    model = graph_of(module, x)
    weight = next(node for node in model.graph if node.inputs[0].name == "layer.codes")
    codes, _, zero = weight.inputs
    assert [value.name for value in weight.inputs] == ["layer.codes", "layer.step", "layer.zero"]
    expected = ir.DataType.UINT4 if weight_bits <= 4 else ir.DataType.UINT8
    assert codes.dtype == zero.dtype == expected
    assert codes.const_value.nbytes == -(-inner.weight.numel() // (2 if weight_bits <= 4 else 1))
    stored = ops.unpack_codes(module.unet.layer.codes, weight_bits, module.unet.layer.shape)
    assert np.array_equal(codes.const_value.numpy().astype(np.uint8), stored.numpy())
    assert np.array_equal(zero.const_value.numpy().astype(np.uint8), module.unet.layer.zero.numpy())
    for timestep in (0, 400, 650, 999):
        expected_y = module(x, torch.tensor([timestep]))[0].numpy()
        assert np.abs(run(model, x, timestep) - expected_y).max() <= PRODUCT * max(1, np.abs(expected_y).max())
    divided = [node for node in model.graph if node.op_type == "Div"]
    assert len(divided) == (kind == "conv")  # dilation stands in front of the quantiser


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (nn.Conv1d(4, 4, 1), "over 1 axes"),
        (nn.Conv2d(4, 4, 3, groups=2), "groups 2"),
        (nn.Conv2d(4, 4, 3, dilation=2), r"dilation \(2, 2\)"),
    ],
)
def test_a_layer_that_cannot_be_exported_is_named(inner: nn.Module, message: str) -> None:
    module = alone(lambda clock: UniformLayer(inner, 4, 4, clock).to_inference())
    with pytest.raises(UnsupportedError, match=rf"layer 'layer'.*{message}"):
        check_layers(module)


@pytest.mark.parametrize("bad", [2.5, -1.0, 16.0])
def test_zero_points_off_the_grid_are_refused(bad: float) -> None:
    module = alone(lambda clock: table(clock, 4, EDGES))
    module.unet.layer.table[2, 1] = bad
    with pytest.raises(InvalidModelError, match=r"quantiser 'layer'.*whole zero points of 0\.\.15"):
        check_layers(module)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(path, outcome, module) of the small UNet."""
    checkpoint = w4a4_checkpoint()
    path = tmp_path_factory.mktemp("w4a4") / "model.onnx"
    return path, export(checkpoint, path, layer_golden=True), checkpoint.module


def test_stock_onnxruntime_repeats_every_golden_step(exported) -> None:
    path, _, _ = exported
    session, data = _session(path), load_file(golden.golden_path(path))
    errors = []
    for step in golden.golden_steps():
        feed = {entry.name: data[f"step.{step}.{entry.name}"].numpy() for entry in session.get_inputs()}
        expected = data[f"step.{step}.eps"].numpy()
        errors.append(np.abs(session.run(["eps"], feed)[0] - expected).max() / np.abs(expected).max())
    assert np.median(errors) <= STEP and max(errors) <= FLIP


def test_all_weights_of_the_file_are_packed(exported) -> None:
    path, outcome, module = exported
    proto = onnx.load(path)
    layers = {name: each for name, each in module.unet.named_modules() if isinstance(each, QuantLayer)}
    assert len(layers) > 30
    held = {item.name: item for item in proto.graph.initializer}
    packed = 0
    for name, each in layers.items():
        item = held[f"{name}.codes"]
        assert item.data_type == (onnx.TensorProto.UINT4 if each.weight_bits <= 4 else onnx.TensorProto.UINT8)
        assert f"{name}.weight" not in held
        packed += len(item.raw_data)
    assert outcome.figures["bytes.weights.packed"] == packed
    floats = sum(np.prod(item.dims) for item in held.values() if item.data_type == onnx.TensorProto.FLOAT)
    assert packed < sum(np.prod(each.shape) for each in layers.values()) * 0.6
    assert floats < sum(np.prod(each.shape) for each in layers.values()) * 0.2


def test_every_quantiser_of_the_model_is_in_the_graph_with_its_path_and_its_table(exported) -> None:
    path, _, module = exported
    model = load_graph(path)
    quantizers = {name: each for name, each in module.unet.named_modules() if isinstance(each, UniformQuantizer)}
    quantized = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    found = collections.Counter(node.metadata_props[MODULE_KEY] for node in quantized)
    assert found == dict.fromkeys(quantizers, 1)
    lookups = {node.metadata_props[MODULE_KEY]: node for node in model.graph if node.op_type == "TimestepLookup"}
    assert set(lookups) == {name for name, each in quantizers.items() if len(each.table) > 1}
    for name, node in lookups.items():
        stored, edges = (value.const_value.numpy() for value in node.inputs[:2])
        assert np.array_equal(stored, quantizers[name].table.numpy())
        assert edges.tolist() == list(EDGES)


def test_layer_golden_holds_layers_and_quantisers(exported) -> None:
    path, _, module = exported
    data = load_file(path.with_suffix(".layers.safetensors"))
    kinds = (*RUNNING_LAYERS, *RUNNING_QUANTIZERS)
    recorded = {name for name, each in module.unet.named_modules() if isinstance(each, kinds)}
    assert set(data) == {f"{name}.{side}" for name in recorded for side in ("input", "output")}


def test_equal_models_give_equal_bytes(exported, tmp_path) -> None:
    path, _, _ = exported
    export(w4a4_checkpoint(), tmp_path / path.name)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()
