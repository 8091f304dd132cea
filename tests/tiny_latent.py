"""A tiny latent model as deployed graphs: a text condition and a decoder; compiled once a session.

Latents of 2x4x4, three tokens of four numbers, images of 3x8x8.
"""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import save_file
from tiny_model import model

from edgedm.export.decoder_file import DECODER_ROLES, decoder_path
from edgedm.export.graph_io import GraphInfo, save_graph, set_graph_info

LATENT, TOKENS, IMAGE = (2, 4, 4), (3, 4), (3, 8, 8)
CONFIG = {
    "noise_schedule": {"num_train_timesteps": 1000, "clip_sample": False},
    "architecture": {"config": {"cross_attention_dim": TOKENS[1]}},
    "condition_tokens": TOKENS[0],
    "decoder": {"class_name": "VQModel", "config": {}},
}

STEP = """<ir_version: 10, opset_import: ["" : 21]>
step (float[1,2,4,4] x, float[1,3,4] "row.0", float[1,2] "row.1") => (float[1,2,4,4] eps)
{
  first = Conv <pads = [1,1,1,1]> (x, w_in, b_in)
  pooled = ReduceMean <keepdims = 0> ("row.0", axes)
  text = Gemm <transB = 1> (pooled, w_text, b_text)
  both = Add (text, "row.1")
  wide = Unsqueeze (both, tail)
  eps = Add (first, wide)
}"""

PREPARE = """<ir_version: 10, opset_import: ["" : 21]>
prepare (int64[1] timestep, float[1,3,4] encoder_hidden_states) => (float[1,3,4] "row.0", float[1,2] "row.1")
{
  "row.0" = MatMul (encoder_hidden_states, w_key)
  time = Cast <to = 1> (timestep)
  "row.1" = Mul (time, per_thousand)
}"""

DECODER = """<ir_version: 10, opset_import: ["" : 21]>
decoder (float[1,2,4,4] latent) => (float[1,3,8,8] image)
{
  z = Div (latent, scale)
  large = Resize <coordinate_transformation_mode = "asymmetric", mode = "nearest", nearest_mode = "floor">
    (z, , twice)
  image = Conv <pads = [1,1,1,1]> (large, w_out, b_out)
}"""


def constants(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    return {
        "w_in": normal(2, 2, 3, 3, scale=0.2),
        "b_in": normal(2, scale=0.1),
        "axes": np.array([1], np.int64),
        "w_text": normal(2, 4, scale=0.5),
        "b_text": normal(2, scale=0.1),
        "tail": np.array([2, 3], np.int64),
        "w_key": normal(4, 4),
        "per_thousand": np.array([[0.001, -0.0005]], np.float32),
        "scale": np.array(0.5, np.float32),
        "twice": np.array([1, 1, 2, 2], np.float32),
        "w_out": normal(3, 2, 3, 3, scale=0.2),
        "b_out": normal(3, scale=0.1),
    }


def condition(seed: int = 3) -> np.ndarray:
    """A text condition f32[3, 4]."""
    return np.random.default_rng(seed).standard_normal(TOKENS).astype(np.float32)


def write_graphs(folder: Path) -> Path:
    """Write deploy.onnx and its companions; returns the former."""
    step, prepare, decoder = (model(text, constants()) for text in (STEP, PREPARE, DECODER))
    set_graph_info(step, GraphInfo("deployed", CONFIG, {"x": "x", "row.0": "row", "row.1": "row"}))
    roles = {"timestep": "timestep", "encoder_hidden_states": "encoder_hidden_states"}
    set_graph_info(prepare, GraphInfo("prepare", CONFIG, roles))
    set_graph_info(decoder, GraphInfo("decoder", CONFIG, DECODER_ROLES))
    path = folder / "deploy.onnx"
    save_graph(step, path)
    save_graph(prepare, path.with_suffix(".prepare.onnx"))
    save_graph(decoder, decoder_path(path))
    reference, rng, tensors = Reference(path), np.random.default_rng(5), {}
    for number, timestep in enumerate((900, 60)):
        x = rng.standard_normal(LATENT).astype(np.float32)
        tensors[f"step.{number}.x"] = x[None]
        tensors[f"step.{number}.timestep"] = np.array([timestep])
        tensors[f"step.{number}.encoder_hidden_states"] = condition()[None]
        tensors[f"step.{number}.eps"] = reference.step(timestep, x, condition())[None]
    tensors |= {"image": x, "decoded": reference.decode(x)}
    save_file(tensors, path.with_suffix(".golden.safetensors"), {"golden_steps": "[0, 1]"})
    return path


class Reference:
    """The graphs under ONNX Runtime without optimisation."""

    def __init__(self, graph: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        files = (graph, graph.with_suffix(".prepare.onnx"), decoder_path(graph))
        self.sessions = [onnxruntime.InferenceSession(file, options) for file in files]

    def step(self, timestep: int, x: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Output f32[2, 4, 4]."""
        step, prepare, _ = self.sessions
        rows = prepare.run(None, {"timestep": np.array([timestep]), "encoder_hidden_states": text[None]})
        return step.run(None, {"x": x[None], "row.0": rows[0], "row.1": rows[1]})[0][0]

    def decode(self, latent: np.ndarray) -> np.ndarray:
        """Image f32[3, 8, 8]."""
        return self.sessions[2].run(None, {"latent": latent[None]})[0][0]


@functools.cache
def folder() -> Path:
    """deploy.onnx, its companions and model.bundle, made once a process."""
    from edgedm.lower import compile as compile_graph

    made = Path(tempfile.mkdtemp(prefix="edgedm-latent-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    compile_graph(write_graphs(made), made / "model.bundle", steps=10)
    return made
