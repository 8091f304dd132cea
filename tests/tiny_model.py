"""A tiny 1-bit denoiser as deployed graphs: every kind of input, one carried state, compiled once a session.

8x8 images, 8 channels, three classes of which the last means "none"; timesteps below 40 have no table row.
"""

import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from edgedm.export.graph_io import GraphInfo, save_graph, set_graph_info

CHANNELS, SIZE, CLASSES, NULL = 8, 8, 3, 2
FIRST_TIMESTEP = 40
CONFIG = {
    "noise_schedule": {"num_train_timesteps": 1000, "timestep_spacing": "trailing"},
    "null_class": NULL,
    "architecture": {"config": {"num_class_embeds": CLASSES}},
}

STEP = """<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]>
step (float[1,1,8,8] x, float[1] has_state, float[1,8,8,8] "state.mid", float[1,8] "row.0", float[2] "row.1")
  => (float[1,1,8,8] eps, float[1,8,8,8] "state.mid.next")
{
  first = Conv <pads = [1,1,1,1]> (x, w_in, b_in)
  moved = Unsqueeze ("row.0", tail)
  shifted = Add (first, moved)
  last = Transpose <perm = [0,2,3,1]> (shifted)
  y, bits, size = edgedm.GroupNormSiluPack <groups = 2, epsilon = 0.00001> (last, gamma, beta, threshold)
  size_first = Transpose <perm = [0,3,1,2]> (size)
  smooth = Conv <pads = [1,1,1,1]> (size_first, filter, filter_bias)
  scale = Transpose <perm = [0,2,3,1]> (smooth)
  conv = edgedm.BinaryConv <channels = 8, strides = [1,1], pads = [1,1,1,1]>
    (bits, weight, multiplier, scale, addend, y, gain)
  conv_first = Transpose <perm = [0,3,1,2]> (conv)
  old_part, new_part = Split <num_outputs = 2> ("row.1")
  old_mix = Mul (old_part, has_state)
  old = Mul ("state.mid", old_mix)
  new = Mul (conv_first, new_part)
  "state.mid.next" = Add (old, new)
  both = Concat <axis = 1> ("state.mid.next", shifted)
  active = Sigmoid (both)
  eps = Conv <pads = [1,1,1,1]> (active, w_out, b_out)
}"""

PREPARE = """<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]>
prepare (int64[1] timestep, int64[1] class_labels) => (float[1,8] "row.0", float[2] "row.1")
{
  time = Cast <to = 1> (timestep)
  scaled = Mul (time, per_thousand)
  wave = Sin (scaled)
  hidden = Gemm <transB = 1> (wave, w_time, b_time)
  embedded = Gather (classes, class_labels)
  "row.0" = Add (hidden, embedded)
  "row.1" = edgedm.TimestepLookup (table, edges, timestep)
}"""


def constants(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    packed = rng.integers(0, 256, (CHANNELS, 3, 3, 8), dtype=np.uint8)
    packed[..., 1:] = 0  # channels 8..63 are padding
    return {
        "w_in": normal(CHANNELS, 1, 3, 3, scale=0.4),
        "b_in": normal(CHANNELS, scale=0.1),
        "tail": np.array([2, 3], np.int64),
        "gamma": normal(CHANNELS),
        "beta": normal(CHANNELS, scale=0.3),
        "threshold": normal(CHANNELS, scale=0.3),
        "filter": normal(1, 1, 3, 3, scale=0.1) + np.float32(0.1),
        "filter_bias": normal(1, scale=0.1),
        "weight": packed,
        "multiplier": normal(CHANNELS, scale=0.05),
        "addend": normal(CHANNELS, scale=0.1),
        "gain": np.array([0.3], np.float32),
        "w_out": normal(1, 2 * CHANNELS, 3, 3, scale=0.1),
        "b_out": normal(1, scale=0.1),
        "per_thousand": np.linspace(0.001, 0.01, 4, dtype=np.float32)[None],
        "w_time": normal(CHANNELS, 4, scale=0.3),
        "b_time": normal(CHANNELS, scale=0.1),
        "classes": normal(CLASSES, CHANNELS, scale=0.5),
        "table": np.array([[0.2, 0.9], [0.4, 0.7], [0.6, 0.5]], np.float32),
        "edges": np.array([FIRST_TIMESTEP, 300, 700], np.int64),
    }


def model(text: str, arrays: dict[str, np.ndarray]) -> ir.Model:
    """Parse a graph and give it the initialisers that it names."""
    proto = onnx.parser.parse_model(text)
    for index, node in enumerate(proto.graph.node):
        node.name = f"node{index}"
        entry = node.metadata_props.add()
        entry.key, entry.value = "edgedm.module", f"tiny.{node.output[0]}"
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items() if n in used)
    return ir.serde.deserialize_model(proto)


def write_pair(folder: Path, config: dict | None = None) -> Path:
    """Write deploy.onnx and deploy.prepare.onnx; returns the former."""
    arrays = constants()
    step, prepare = model(STEP, arrays), model(PREPARE, arrays)
    roles = {"x": "x", "has_state": "has_state", "state.mid": "state", "row.0": "row", "row.1": "row"}
    set_graph_info(step, GraphInfo("deployed", config or CONFIG, roles))
    inputs = {"timestep": "timestep", "class_labels": "class_labels"}
    set_graph_info(prepare, GraphInfo("prepare", config or CONFIG, inputs))
    save_graph(step, folder / "deploy.onnx")
    save_graph(prepare, folder / "deploy.prepare.onnx")
    write_golden(folder / "deploy.golden.safetensors", Reference(folder / "deploy.onnx"))
    return folder / "deploy.onnx"


def write_golden(path: Path, reference: "Reference") -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(5)
    tensors, state = {}, None
    for step, timestep in enumerate((900, 500, 60)):
        x = rng.standard_normal((1, SIZE, SIZE)).astype(np.float32)
        zero = np.zeros((1, CHANNELS, SIZE, SIZE), np.float32)
        tensors[f"step.{step}.x"] = x[None]
        tensors[f"step.{step}.timestep"] = np.array([timestep])
        tensors[f"step.{step}.class_labels"] = np.array([1])
        tensors[f"step.{step}.has_state"] = np.array([float(state is not None)], np.float32)
        tensors[f"step.{step}.state.mid"] = zero if state is None else state
        eps, state = reference.step(timestep, x, 1, state)
        tensors[f"step.{step}.eps"] = eps[None]
    save_file(tensors, path, {"golden_steps": "[0, 1, 2]"})
    layers = {"tiny.conv.input": tensors["step.1.x"]}
    save_file(layers, path.with_name(path.name.replace(".golden.", ".layers.")), {"layers_step": "1"})


class Reference:
    """The two graphs under ONNX Runtime without optimisation."""

    def __init__(self, graph: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options)
        self.before = onnxruntime.InferenceSession(graph.with_suffix(".prepare.onnx"), options)

    def step(self, timestep: int, x: np.ndarray, label: int, state: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Output f32[1,8,8] and next state f32[1,8,8,8]."""
        rows = self.before.run(None, {"timestep": np.array([timestep]), "class_labels": np.array([label])})
        zero = np.zeros((1, CHANNELS, SIZE, SIZE), np.float32)
        feeds = {
            "x": x[None],
            "has_state": np.array([float(state is not None)], np.float32),
            "state.mid": zero if state is None else state,
            "row.0": rows[0],
            "row.1": rows[1],
        }
        eps, following = self.session.run(None, feeds)
        return eps[0], following


@functools.cache
def folder() -> Path:
    """deploy.onnx, its companions and model.bundle, made once a process."""
    from edgedm.lower import compile as compile_graph

    made = Path(tempfile.mkdtemp(prefix="edgedm-tiny-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    compile_graph(write_pair(made), made / "model.bundle", steps=10)
    return made


@contextlib.contextmanager
def compiled_for(target: str) -> Iterator[Path]:
    """The bundle for another target, gone afterwards."""
    from edgedm.lower import compile as compile_graph

    with tempfile.TemporaryDirectory(prefix="edgedm-tiny-") as made:
        compile_graph(folder() / "deploy.onnx", Path(made) / "model.bundle", target=target, steps=10)
        yield Path(made) / "model.bundle"
