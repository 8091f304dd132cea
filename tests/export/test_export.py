"""Exported graphs of random-weight models: stock ONNX Runtime agrees with PyTorch, weights stay packed, names stay."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_models import ROLES, SIZE, small_checkpoint
from torch import nn

from edgedm import ops
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export import export, exporter, golden
from edgedm.export.graph_io import MODULE_KEY, graph_info, load_graph
from edgedm.export.to_onnx import check_layers
from edgedm.quant.inference import LOW_BIT_LAYERS, ActivationQuantizer, BinaryConv2d, BinaryLinear

# Relative to the largest value of a step's output: float32 sums in another order, through some 20 layers.
STEP = 2e-5
# A step may hold an activation so near its threshold that the two runtimes decide it differently (about one in a
# million does); one such flip moves this small model's output by up to about this much.
FLIP = 0.3


def _session(path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _low_bit_layers(module) -> dict[str, nn.Module]:
    return {path: layer for path, layer in module.unet.named_modules() if isinstance(layer, LOW_BIT_LAYERS)}


def test_stock_onnxruntime_repeats_every_golden_step(exported) -> None:
    session, data = _session(exported.path), load_file(golden.golden_path(exported.path))
    names = [output.name for output in session.get_outputs()]
    errors = []
    for step in golden.golden_steps():
        feed = {entry.name: data[f"step.{step}.{entry.name}"].numpy() for entry in session.get_inputs()}
        for name, result in zip(names, session.run(None, feed), strict=True):
            expected = data[f"step.{step}.{name}"].numpy()
            errors.append(np.abs(result - expected).max() / np.abs(expected).max())
    assert np.median(errors) <= STEP
    assert max(errors) <= FLIP


def test_inputs_and_outputs_have_the_signature_of_the_denoiser(exported) -> None:
    model = load_graph(exported.path)
    assert [value.name for value in model.graph.inputs] == exported.module.input_names
    assert [value.name for value in model.graph.outputs] == exported.module.output_names
    info = graph_info(model)
    assert info.level == "exported" and info.config["method"] == exported.method
    roles = {name: "state" if name.startswith("state.") else name for name in exported.module.input_names}
    assert info.inputs == roles
    assert dict(model.opset_imports)[""] == ops.ONNX_OPSET


def test_low_bit_weights_are_stored_packed_and_nowhere_else(exported) -> None:
    model, layers = load_graph(exported.path), _low_bit_layers(exported.module)
    unpacked = [node for node in model.graph if node.op_type in ("UnpackBits", "UnpackBitsLinear")]
    assert len(unpacked) == len(layers)
    for node in unpacked:
        (bits,) = node.inputs
        assert bits is not None and bits.const_value is not None
        layer = layers[node.metadata_props[MODULE_KEY]]
        assert np.array_equal(bits.const_value.numpy(), layer.bits.numpy())
    floats = {name for name, value in model.graph.initializers.items() if value.dtype == ir.DataType.FLOAT}
    assert not any(f"{path}.weight" in floats for path in layers)
    stored = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    assert exported.outcome.figures["bytes.weights"] == stored
    assert exported.outcome.figures["bytes.weights.packed"] == sum(layer.bits.numel() for layer in layers.values())


def test_every_node_knows_its_module(exported) -> None:
    model, layers = load_graph(exported.path), _low_bit_layers(exported.module)
    for node in model.graph:
        path = node.metadata_props[MODULE_KEY]
        assert path == "" or exported.module.unet.get_submodule(path) is not None
    signs = {node.metadata_props[MODULE_KEY] for node in model.graph if node.op_type == "Binarize"}
    binary = {path for path, layer in layers.items() if isinstance(layer, BinaryConv2d | BinaryLinear)}
    assert signs == binary


def test_constants_carry_the_names_of_their_buffers(exported) -> None:
    model = load_graph(exported.path)
    for path, layer in _low_bit_layers(exported.module).items():
        for name in ("bits", "scale", "threshold", "bias"):
            if getattr(layer, name, None) is not None:
                assert f"{path}.{name}" in model.graph.initializers


def test_four_bit_activations_are_standard_int4_ops(exported) -> None:
    model = load_graph(exported.path)
    quantize = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert {node.outputs[0].dtype for node in quantize} <= {ir.DataType.INT4}
    layers = exported.module.unet.modules()
    expected = [layer for layer in layers if hasattr(layer, "step")]
    assert len(quantize) == len(expected) == sum(node.op_type == "DequantizeLinear" for node in model.graph)


def test_only_functions_in_use_are_in_the_file(exported) -> None:
    proto = onnx.load(exported.path)
    used = {node.op_type for node in proto.graph.node if node.domain == ops.DOMAIN}
    assert {function.name for function in proto.functions} == used


def test_no_path_of_this_machine_is_in_the_file(exported) -> None:
    content = exported.path.read_bytes()
    for trace in (b"site-packages", b".py", b"pkg.torch", str(exported.path.parent).encode()):
        assert trace not in content


def test_golden_trajectory_carries_the_state_from_step_to_step(exported) -> None:
    """An independent loop over the 50 steps reaches the same recorded inputs and the same image."""
    path, module = golden.golden_path(exported.path), exported.module
    data = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["golden_steps"]) == [0, 7, 14, 21, 28, 35, 42, 49]
    noise = json.loads(metadata["rounding_noise"])
    assert len(noise) == 8 and all(0 <= error < 2 for error in noise) and max(noise) > 0
    label = torch.tensor([int(metadata["class_label"])])
    betas = torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)
    alphas = torch.cumprod(1 - betas, 0)
    x, state = data["noise"][None], module.zero_state(SIZE, SIZE) if module.taps else []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for step, timestep in enumerate(range(980, -1, -20)):
        extra = [torch.full((1,), float(step > 0)), *state] if module.taps else []
        seen = data.get(f"step.{step}.x")
        if seen is not None:
            assert torch.allclose(x, seen, atol=1e-4)
            assert data[f"step.{step}.timestep"].tolist() == [timestep]
            x = seen  # a flip in an earlier step must not spoil the comparison of the later ones
            for index, tap in enumerate(module.taps):
                extra[0], extra[1 + index] = torch.full((1,), float(step > 0)), data[f"step.{step}.state.{tap}"]
                assert torch.allclose(state[index], extra[1 + index], atol=1e-3) or step == 0
        eps, *state = module(x, torch.tensor([timestep]), label, *extra)
        now, before = alphas[timestep], alphas[timestep - 20] if timestep >= 20 else torch.tensor(1.0)
        x0 = ((x - (1 - now).sqrt() * eps) / now.sqrt()).clamp(-1, 1)
        x = (before.sqrt() * x0 + (1 - before).sqrt() * eps).float()
    torch.set_num_threads(threads)
    assert torch.allclose(x[0], data["image"], atol=1e-4)


@pytest.mark.parametrize("exported", ["binarydm", "bidm"], indirect=True)
def test_layer_golden_holds_every_low_bit_layer(exported) -> None:
    layers = _low_bit_layers(exported.module)
    data = load_file(exported.path.with_suffix(".layers.safetensors"))
    quantizers = {
        path for path, layer in exported.module.unet.named_modules() if isinstance(layer, ActivationQuantizer)
    }
    assert set(data) == {f"{path}.{side}" for path in {*layers, *quantizers} for side in ("input", "output")}
    for layer_path, layer in layers.items():
        repeated = layer(data[f"{layer_path}.input"])
        assert torch.allclose(repeated, data[f"{layer_path}.output"], rtol=1e-5, atol=1e-5)


def test_int4_ops_of_onnxruntime_decide_as_quantize4() -> None:
    """Ties, saturation and zeros; an odd number of elements, since two share a byte.

    Not beyond 2^31 steps, where ONNX Runtime 1.31's conversion overflows (1e30 becomes -8).
    """
    step = np.array(0.3, np.float32)
    x = np.concatenate([(np.arange(-40, 41) * np.float32(0.5)) * step, [3e8, -3e8, -0.0, 0.0]])
    x = x.astype(np.float32)
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[85] x, float step) => (float[85] y) <int4 zero = {0}>
    { codes = QuantizeLinear (x, step, zero)  y = DequantizeLinear (codes, step, zero) }
    """
    model = onnx.parser.parse_model(text)
    (y,) = _session(model.SerializeToString()).run(None, {"x": x, "step": step})
    expected = ops.quantize4(torch.from_numpy(x), torch.tensor(step)).numpy()
    assert np.array_equal(y, expected)


@pytest.mark.parametrize("exported", ["binarydm"], indirect=True)
def test_equal_checkpoints_give_equal_bytes(exported, tmp_path) -> None:
    export(small_checkpoint(exported.method), tmp_path / exported.path.name, layer_golden=True)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == exported.path.with_name(path.name).read_bytes()


class _Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (_Foreign(), "_Foreign is not supported"),
        (nn.PReLU(), "PReLU is not supported"),
        (nn.Tanh(), "Tanh is not supported"),
        (nn.Conv2d(8, 8, 3, padding=1, groups=2), "groups 2"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), "'circular'"),
    ],
)
def test_an_unsupported_layer_is_named(layer: nn.Module, message: str, tmp_path) -> None:
    checkpoint = small_checkpoint("fp32")
    checkpoint.module.unet.set_submodule("down_blocks.0.resnets.0.conv2", layer)
    with pytest.raises(UnsupportedError, match=rf"down_blocks\.0\.resnets\.0\.conv2.*{message}"):
        export(checkpoint, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_all_layers_of_the_zoo_models_are_supported() -> None:
    for method in ROLES:
        check_layers(small_checkpoint(method).module)


def test_an_interrupted_export_leaves_no_file(tmp_path, monkeypatch) -> None:
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter.golden, "files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(small_checkpoint("fp32"), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_name_is_refused_before_any_work(tmp_path) -> None:
    with pytest.raises(InvalidModelError, match=r"ends in \.onnx"):
        export(small_checkpoint("fp32"), tmp_path / "model.bin")


def test_a_missing_checkpoint_is_refused(tmp_path) -> None:
    with pytest.raises(InvalidModelError, match="nowhere"):
        export(tmp_path / "nowhere", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("state_megabytes", "recorded"), [(0, 8), (3, 8), (7, 4), (24, 2)])
def test_large_state_is_recorded_at_fewer_steps(state_megabytes: int, recorded: int) -> None:
    inputs = {"x": torch.zeros(1, 3, 4, 4), "state": torch.zeros(state_megabytes << 18)}
    steps = golden.golden_steps(*golden.extent(_Weights(10), inputs))
    assert len(steps) == recorded and steps[0] == 0 and steps[-1] == golden.TRAJECTORY_STEPS - 1


def test_a_large_model_is_run_for_a_short_trajectory() -> None:
    assert golden.extent(_Weights(20_000), {"x": torch.zeros(3)}) == (golden.SHORT_TRAJECTORY, 8)


class _Weights(torch.nn.Module):
    """A denoiser of one square layer, without memory."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.unet = torch.nn.Linear(channels, channels, device="meta")
