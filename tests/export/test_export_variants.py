"""Graphs of the published variants of BinaryDM and BiDM: ONNX Runtime agrees with PyTorch, the passes keep it so."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from small_models import CLASSES, UNET
from torch import nn

from edgedm.export import export, golden
from edgedm.export.graph_io import load_graph, serialize_graph
from edgedm.export.to_onnx import build_graph
from edgedm.models import CheckpointConfig, build, load, save
from edgedm.models.config import Architecture
from edgedm.models.denoiser import Denoiser
from edgedm.passes import optimize
from edgedm.quant.methods.bidm import BinaryLayer
from edgedm.quant.methods.binarydm import BinaryWeightLayer, LSQActivation
from edgedm.quant.policy import policy_of

# Relative to the largest value of a step's output: float32 sums in another order, through some 20 layers.
STEP = 2e-5
# One code that the two runtimes decide differently (an activation on a tie, to rounding) moves the output by this.
FLIP = 0.3

# name: (method, policy's variant, activation bits, options)
VARIANTS = {
    "lmb": ("binarydm", "code", "W1A4", {"bases": "lmb"}),
    "lmb, 8 bits, edges of 8 bits": ("binarydm", "paper", "W1A8", {"bases": "lmb"}),
    "projections as convolutions": ("bidm", "paper", "W1A1", {"attention": "conv2d"}),
}
FIRST, *LONGER = VARIANTS
PRODUCT = 1e-5  # a few products in a row, sums of at most 72 terms


@pytest.fixture(scope="module", params=[FIRST, *(pytest.param(each, marks=pytest.mark.slow) for each in LONGER)])
def exported(request, tmp_path_factory) -> SimpleNamespace:
    method, variant, nominal, options = VARIANTS[request.param]
    connected = method == "bidm"
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=UNET),
        method=method,
        roles=dict(policy_of(method, variant, nominal).bits),
        noise_schedule={"num_train_timesteps": 1000},
        null_class=CLASSES,
        options=options,
        taps=["up_blocks.1.resnets.1"] if connected else [],
        timestep_bins=[0, 100, 500] if connected else [],
    )
    folder: Path = tmp_path_factory.mktemp("variant")
    save(build(config, seed=0), folder / "checkpoint")
    checkpoint = load(folder / "checkpoint")
    export(checkpoint, folder / "model.onnx")
    return SimpleNamespace(name=request.param, options=options, path=folder / "model.onnx", module=checkpoint.module)


def session_of(path: Path | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def errors(session: onnxruntime.InferenceSession, data: dict, prepare: onnxruntime.InferenceSession | None = None):
    """Relative error of every output at every golden step."""
    names, found = [output.name for output in session.get_outputs()], []
    for step in golden.golden_steps():
        prefix = f"step.{step}."
        feeds = {name.removeprefix(prefix): data[name].numpy() for name in data if name.startswith(prefix)}
        if prepare is not None:
            rows = prepare.run(None, {entry.name: feeds[entry.name] for entry in prepare.get_inputs()})
            feeds |= {output.name: row for output, row in zip(prepare.get_outputs(), rows, strict=True)}
        results = session.run(None, {entry.name: feeds[entry.name] for entry in session.get_inputs()})
        for name, result in zip(names, results, strict=True):
            found.append(np.abs(result - feeds[name]).max() / np.abs(feeds[name]).max())
    return found


def test_stock_onnxruntime_repeats_every_golden_step(exported) -> None:
    found = errors(session_of(exported.path), load_file(golden.golden_path(exported.path)))
    assert np.median(found) <= STEP and max(found) <= FLIP


def test_the_optimised_graph_repeats_every_golden_step(exported, tmp_path) -> None:
    assert optimize(exported.path, tmp_path / "deploy.onnx", check=True).ok
    step, prepare = session_of(tmp_path / "deploy.onnx"), session_of(tmp_path / "deploy.prepare.onnx")
    found = errors(step, load_file(golden.golden_path(exported.path)), prepare)
    assert np.median(found) <= STEP and max(found) <= FLIP


def test_every_basis_is_a_packed_constant_with_a_product_of_its_own(exported) -> None:
    model = load_graph(exported.path)
    layers = {path: layer for path, layer in exported.module.unet.named_modules() if hasattr(layer, "bits")}
    packed = {name for name in model.graph.initializers if name.endswith((".bits", ".bits2"))}
    expected = {f"{path}.{name}" for path, layer in layers.items() for name in layer.state_dict() if "bits" in name}
    assert packed == expected
    assert any(name.endswith(".bits2") for name in packed) == (exported.options.get("bases") == "lmb")
    unpacked = sum(node.op_type.startswith("UnpackBits") for node in onnx.load(exported.path).graph.node)
    assert unpacked == len(packed)


class _Stack(nn.Module):
    """Layers one after the other in the place of a UNet."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, timestep, class_labels, return_dict):  # as diffusers' UNets, without class embedding
        for layer in self.layers:
            x = layer(x)
        return (x,)


def test_every_width_and_every_form_of_a_layer_is_exported() -> None:
    torch.manual_seed(0)
    widths = [LSQActivation(2), LSQActivation(6), LSQActivation(8), None, LSQActivation(4, dynamic=True)]
    widths += [LSQActivation(8, dynamic=True)]
    layers = [BinaryWeightLayer(nn.Conv2d(8, 8, 3, 1, 1), width, "sign", 2) for width in widths]
    layers += [BinaryWeightLayer(nn.Linear(8, 8), LSQActivation(2), "sign", 2)]
    layers += [BinaryLayer(nn.Linear(8, 8)), BinaryLayer(nn.Conv2d(8, 8, 3, 1, 1), "none", shortcut=False)]
    x = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        _Stack(*layers)(x, None, None, None)  # starts the steps
    module = Denoiser(_Stack(*(layer.to_inference() for layer in layers))).eval().requires_grad_(False)
    inputs = {"x": x, "timestep": torch.zeros(1, dtype=torch.int64)}
    session = session_of(serialize_graph(build_graph(module, inputs)))
    (y,) = session.run(["eps"], {entry.name: inputs[entry.name].numpy() for entry in session.get_inputs()})
    expected = module(*inputs.values())[0].numpy()
    wrong = np.abs(y - expected) > PRODUCT * np.abs(expected).max()
    assert wrong.mean() < 0.02  # a code on a tie may be decided differently, and is seen by its neighbours
