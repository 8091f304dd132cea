"""How each engine is set up and called: these functions run in the engine's own process (see `worker`).

Each returns a function that runs one denoising step (batch 1) on the seeded inputs, threads and instructions being
those that the process was given. Engines keep their default of waiting actively between parallel regions, which is
their fastest: the process is stopped between its turns.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgedm.bench.peers import OURS
from edgedm.bench.step import middle_step
from edgedm.bench.twin import CONFIG, FP32, INT8, feeds, read_feeds
from edgedm.errors import ToolchainError

Step = Callable[[], object]


@dataclass(frozen=True)
class Job:
    """What a process is to run: `source` is the bundle for our engine, the twin's folder for a peer."""

    engine: str
    source: Path
    threads: int
    target: str


def make(job: Job) -> Step:
    """Set up the engine that `job` names; what its libraries raise is left to the process's log."""
    return _MAKERS[job.engine](job)


def _edgedm(job: Job) -> Step:
    from edgedm.runtime.local import LocalRunner

    runner = LocalRunner(job.source, job.threads, lanes=1, variant=job.target)
    number, x = middle_step(runner)
    return lambda: runner.run_step(number, x)


def _onnxruntime(job: Job, file: str) -> Step:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    session = ort.InferenceSession(str(job.source / file), options, providers=["CPUExecutionProvider"])
    inputs = read_feeds(job.source)
    return lambda: session.run(None, inputs)


def _openvino(job: Job, quantized: bool) -> Step:
    """OpenVINO, compiled for latency; int8 by NNCF (which quantises for it) or else ONNX Runtime's int8 file."""
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": job.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = _openvino_int8(core, job.source) if quantized else core.read_model(job.source / FP32)
    request = core.compile_model(model, "CPU", {**options, "ENABLE_CPU_PINNING": False}).create_infer_request()
    inputs = read_feeds(job.source)
    return lambda: request.infer(inputs)


def _openvino_int8(core: Any, folder: Path) -> Any:
    import openvino

    try:
        import nncf
    except ModuleNotFoundError:
        return core.read_model(folder / INT8)
    cached = folder / "nncf.xml"
    if not cached.exists():
        config = json.loads((folder / CONFIG).read_text())
        samples = nncf.Dataset(list(feeds(config, 4)))
        preset = nncf.QuantizationPreset.PERFORMANCE
        openvino.save_model(
            nncf.quantize(core.read_model(folder / FP32), samples, preset=preset, subset_size=4),
            cached,
            compress_to_fp16=False,
        )
    return core.read_model(cached)


def _torch(job: Job, compiled: bool) -> Step:
    """PyTorch eager, or compiled by Inductor with its weights frozen into the program."""
    import torch

    from edgedm.models import CheckpointConfig, build

    torch.set_num_threads(job.threads)
    config = CheckpointConfig.model_validate_json((job.source / CONFIG).read_text())
    module: Any = build(config, seed=0).module.eval().requires_grad_(False)
    inputs = [torch.from_numpy(array) for array in read_feeds(job.source).values()]
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
        module = torch.compile(module)

    def step() -> object:
        with torch.no_grad():  # Inductor freezes weights under no_grad, not in inference mode
            return module(*inputs)

    return step


def _ncnn(job: Job) -> Step:
    """ncnn, converted by pnnx from the ONNX file; weights stay float32."""
    import ncnn

    param, weights = _convert_to_ncnn(job.source)
    net = ncnn.Net()
    net.opt.num_threads, net.opt.use_vulkan_compute = job.threads, False
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    if net.load_param(str(param)) or net.load_model(str(weights)):
        raise ToolchainError(f"ncnn cannot load {param.name}: pnnx left an operator that it doesn't have")
    # a Mat only borrows an array's memory
    mats = [ncnn.Mat(_as_ncnn(name, array)).clone() for name, array in read_feeds(job.source).items()]

    def step() -> object:
        extractor = net.create_extractor()
        for number, mat in enumerate(mats):
            extractor.input(f"in{number}", mat)
        status, output = extractor.extract("out0")
        if status:
            raise ToolchainError(f"ncnn cannot run {param.name}: status {status}")
        return output

    return step


def _convert_to_ncnn(folder: Path) -> tuple[Path, Path]:
    import pnnx

    param, weights = folder / "ncnn.param", folder / "ncnn.bin"
    if not param.exists():
        inputs = read_feeds(folder)
        shapes = ",".join(_pnnx_shape(array) for array in inputs.values())
        options = [f"inputshape={shapes}", "fp16=0", f"ncnnparam={param}.raw", f"ncnnbin={weights}"]
        command = [pnnx.EXEC_PATH, str(folder / FP32), *options]
        subprocess.run(command, check=True, stdout=sys.stderr, cwd=folder)
        param.write_text(_only_ncnn_operators(Path(f"{param}.raw").read_text()))
    return param, weights


def _only_ncnn_operators(text: str) -> str:
    """Replace the two operators that pnnx leaves and ncnn doesn't have.

    The conversion of the timestep to float does nothing, as ncnn's input is float already; the row of the class
    embedding that the label chooses becomes that of class 0, the label that is fed.
    """
    lines = []
    layers, blobs = (int(number) for number in text.splitlines()[1].split())
    for line in text.splitlines()[2:]:
        kind, name, *rest = line.split()
        if kind == "Tensor.to":
            lines.append(f"Noop {name} 1 1 {rest[2]} {rest[3]}")
        elif kind == "Gather":
            table, row = rest[2], rest[4]
            lines.append(f"Crop {name} 1 1 {table} {row}_0 -23309=1,0 -23310=1,1 -23311=1,0")  # starts, ends, axes
            lines.append(f"Reshape {name}_0 1 1 {row}_0 {row} 0=-1")
            layers, blobs = layers + 1, blobs + 1
        else:
            lines.append(line)
    return "\n".join([text.splitlines()[0], f"{layers} {blobs}", *lines]) + "\n"


def _pnnx_shape(array: Any) -> str:
    return f"[{','.join(map(str, array.shape))}]{'i64' if array.dtype == np.int64 else 'f32'}"


def _as_ncnn(name: str, array: Any) -> Any:
    """Without the batch axis, which ncnn doesn't have; labels index an embedding, the timestep is a float by now."""
    if name == "class_labels":
        return array.astype(np.int32)
    return np.ascontiguousarray(array[0] if array.ndim == 4 else array, dtype=np.float32)


def _tvm(job: Job) -> Step:
    """TVM with its default pipeline, untuned, for the target that our kernels are compiled for."""
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    from edgedm.targets import resolve

    module = from_onnx(onnx.load(job.source / FP32), keep_params_in_input=False)
    program = tvm.compile(module, target=resolve(job.target).tvm())
    main = relax.VirtualMachine(program, tvm.cpu())["main"]
    inputs = [tvm.runtime.tensor(array) for array in read_feeds(job.source).values()]
    return lambda: main(*inputs)


_MAKERS: dict[str, Callable[[Job], Step]] = {
    OURS: _edgedm,
    "onnxruntime_fp32": lambda job: _onnxruntime(job, FP32),
    "onnxruntime_int8": lambda job: _onnxruntime(job, INT8),
    "openvino_fp32": lambda job: _openvino(job, quantized=False),
    "openvino_int8": lambda job: _openvino(job, quantized=True),
    "torch_eager": lambda job: _torch(job, compiled=False),
    "torch_compile": lambda job: _torch(job, compiled=True),
    "ncnn_fp32": _ncnn,
    "tvm_default": _tvm,
}
