"""Single layers against peers: `bconv:256x256x16` is a 3x3 convolution of 256 to 256 channels on 16x16 pixels.

What is timed is what a network pays: from a float feature map to a float feature map, packing (or quantising) and
the epilogue included, one native call a kernel. Peers run the float convolution of the same shape in the same run, in
turns; beside qconv ONNX Runtime also runs its 8-bit one (QuantizeLinear, QLinearConv, DequantizeLinear).
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# TVM reads these when it is loaded; it would take one thread a physical core and bind us to one.
os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
os.environ.setdefault("TVM_BIND_THREADS", "0")
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "2000")  # microseconds, not milliseconds, into the peers' turns
import tvm

from edgedm.bench.limits import limit
from edgedm.bench.peers import Peer, resolve_peers
from edgedm.bench.timing import interleave
from edgedm.errors import ToolchainError, UnsupportedError
from edgedm.ops.domain import IR_VERSION, ONNX_OPSET
from edgedm.ops.packing import pack_signs
from edgedm.outcome import Outcome
from edgedm.targets import Target, resolve
from edgedm.targets.kernels import TensorSpec, select
from edgedm.targets.kernels.spec import Array

KINDS = {
    "bconv": "W1A1: PackBits, then BinaryConv with multiplier and addend",
    "wconv": "W1A4: QuantizeCodes, then BinaryWeightConv with multiplier and addend",
    "qconv": "W4A4: QuantizeUniform, then QuantConv with zero points, multiplier, step and addend",
    "fconv": "float32: FloatConv with bias",
}
KERNEL_SIZE = 3
_TVM_BIG_CORES = 1  # the affinity mode of `runtime.config_threadpool` that uses the first cores

Engine = Callable[[], object]

PEERS = {
    peer.name: peer
    for peer in (
        Peer("onnxruntime", ("onnxruntime", "onnx"), "pip install 'edgedm[compile]'"),
        Peer("torch", ("torch",), "pip install 'edgedm[train]'"),
    )
}


@dataclass(frozen=True)
class Layer:
    """A square convolution with padding 1."""

    kind: str
    channels: int
    out_channels: int
    height: int

    @classmethod
    def parse(cls, text: str) -> "Layer":
        """Read KIND:INxOUTxHEIGHT; raises UnsupportedError."""
        found = re.fullmatch(r"(\w+):(\d+)x(\d+)x(\d+)", text)
        if not found or found[1] not in KINDS or not all(int(number) for number in found.groups()[1:]):
            raise UnsupportedError(
                f"layer {text!r}: expected KIND:INxOUTxHEIGHT, KIND one of {', '.join(KINDS)}, e.g. bconv:256x256x16"
            )
        return cls(found[1], int(found[2]), int(found[3]), int(found[4]))

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.height**2 * KERNEL_SIZE**2 * self.channels * self.out_channels


def bench_layer(
    layer: str,
    *,
    against: Sequence[str] = ("onnxruntime",),
    threads: Sequence[int] = (1, 2),
    target: str = "host",
    seconds: float = 2.0,
) -> Outcome:
    """Time one layer and the peers' float convolution, interleaved, once for each number of threads.

    Figures: `us.<engine>.t<n>` (median), `ratio.<peer>.t<n>` (peer over edgedm), `gmacs.edgedm.t<n>`; for one
    thread `gmacs.limit.t1` and `fraction.t1` of the limit (see `limits`). Details hold deciles, kernel families and
    shapes. `against` names peers (`PEERS`), or is `all` that are installed (`details["absent"]` has the others), or
    `none`. Raises UnsupportedError for an unknown layer, peer or number of threads, ToolchainError for a peer asked for
    by name that is not installed.
    """
    shape = Layer.parse(layer)
    chosen, absent = resolve_peers(against, PEERS)
    peers = [peer.name for peer in chosen]
    machine = resolve(target)
    ours = _Ours(shape, machine)
    bound = limit(shape.kind, machine)
    figures: dict[str, float] = {}
    timings = {}
    for count in threads:
        if not 1 <= count <= machine.cores:
            raise UnsupportedError(f"bench: {count} threads on {machine.cores} cores")
        _use_threads(count)
        engines: dict[str, Engine] = {"edgedm": ours.run}
        engines |= {f"{peer}_fp32": _PEER[peer](shape, count) for peer in peers}
        if shape.kind == "qconv" and "onnxruntime" in peers:
            engines["onnxruntime_int8"] = _onnxruntime_int8(shape, count)
        if count == 1:
            engines["limit"] = bound.run
        timing = interleave(engines, seconds)
        if count == 1:
            figures["gmacs.limit.t1"] = bound.macs / timing.pop("limit").median / 1e9
        timings[f"t{count}"] = {name: vars(each) for name, each in timing.items()}
        best = timing["edgedm"].median
        figures |= {f"us.{name}.t{count}": each.median * 1e6 for name, each in timing.items()}
        figures |= {f"ratio.{name}.t{count}": each.median / best for name, each in timing.items() if name != "edgedm"}
        figures[f"gmacs.edgedm.t{count}"] = shape.macs / best / 1e9
        if count == 1:
            figures["fraction.t1"] = figures["gmacs.edgedm.t1"] / figures["gmacs.limit.t1"]
    details: dict[str, Any] = {"layer": layer, "is": KINDS[shape.kind], "target": machine.name, "macs": shape.macs}
    details |= {"kernels": ours.families, "seconds": timings, "absent": absent}
    return Outcome(True, figures, details)


class _Ours:
    """The layer's kernels with seeded operands; each costs one call, which counts against us."""

    def __init__(self, layer: Layer, target: Target) -> None:
        self._target = target
        self._calls: list[tuple[Callable[..., object], list[object]]] = []
        self.families: list[str] = []
        rng = np.random.default_rng(0)
        x = rng.standard_normal((1, layer.height, layer.height, layer.channels), np.float32)
        weight = rng.standard_normal((layer.out_channels, layer.channels, KERNEL_SIZE, KERNEL_SIZE), np.float32)
        bias = rng.standard_normal(layer.out_channels, np.float32)
        multiplier = rng.uniform(0.01, 0.1, layer.out_channels).astype(np.float32)
        constants: list[Array]
        absent, one = np.zeros((1, 1, 1, 1), np.float32), np.ones(1, np.float32)
        attrs = {"strides": [1, 1], "pads": [1, 1, 1, 1]}
        image = tvm.runtime.tensor(x)
        if layer.kind == "fconv":
            self._add("FloatConv", image, [weight, bias], attrs)
        elif layer.kind == "bconv":
            bits = self._add("PackBits", image, [rng.standard_normal(layer.channels, np.float32)], {})
            constants = [pack_signs(weight), multiplier, one.reshape(1, 1, 1, 1), bias, absent, one]
            self._add("BinaryConv", bits, constants, {**attrs, "channels": layer.channels})
        elif layer.kind == "qconv":
            step, zero = np.array(0.3, np.float32), np.array(7, np.uint8)
            codes = self._add("QuantizeUniform", image, [one, step, zero], {"bits": 4})
            four_bits = np.ascontiguousarray(rng.integers(0, 16, weight.shape).astype(np.uint8).transpose(0, 2, 3, 1))
            zeros = rng.integers(6, 10, layer.out_channels).astype(np.uint8)
            constants = [zero, four_bits, zeros, multiplier, step, bias, absent, one]
            self._add("QuantConv", codes, constants, {**attrs, "bits": 4, "weight_bits": 4})
        else:
            codes = self._add("QuantizeCodes", image, [np.array(0.3, np.float32)], {})
            constants = [pack_signs(weight), multiplier, bias, absent, one]
            self._add("BinaryWeightConv", codes, constants, attrs)

    def run(self) -> None:
        for function, tensors in self._calls:
            function(*tensors)

    def _add(self, op: str, x: Any, constants: Sequence[Array], attrs: dict[str, Any]) -> Any:
        """Append a kernel that reads tensor `x`; return its output."""
        kernel = select(op, [TensorSpec(tuple(x.shape), str(x.dtype)), *constants], attrs, self._target)
        packed = [kernel.packed(index, constants[index - 1]) for index in kernel.kept[1:]]
        rest = [np.zeros(spec.shape, spec.dtype) for spec in (*kernel.outputs, *kernel.scratch)]
        tensors = [tvm.runtime.tensor(np.array(each)) for each in (*packed, *rest)]
        library = tvm.compile(
            tvm.IRModule({"kernel": kernel.function.with_attr("global_symbol", "kernel")}), self._target.tvm()
        )
        self._calls.append((library["kernel"], [x, *tensors]))
        self.families.append(kernel.family)
        return tensors[len(packed)]


def _use_threads(count: int) -> None:
    """Set how many threads TVM's pool gives to a parallel loop, without pinning them (nor us) to cores."""
    tvm.get_global_func("runtime.config_threadpool")(_TVM_BIG_CORES, count)
    if tvm.get_global_func("runtime.NumThreads")() != count:
        raise ToolchainError(
            f"bench: TVM's thread pool has no {count} threads, because TVM was loaded before the benchmark; "
            "run it in a process of its own, or set TVM_NUM_THREADS"
        )


def _onnxruntime(layer: Layer, threads: int) -> Engine:
    """ONNX Runtime's float convolution, all optimisation, in its own layout (NCHW)."""
    from onnx import helper, numpy_helper

    x, weight, bias = _float_operands(layer)
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    return _session(layer, threads, x, [helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])], constants)


def _onnxruntime_int8(layer: Layer, threads: int) -> Engine:
    """ONNX Runtime's convolution of uint8 codes with int8 weights, from float to float."""
    from onnx import helper, numpy_helper

    x, weight, _ = _float_operands(layer)
    values = {"s": np.float32(0.03), "z": np.uint8(128), "w": np.clip(weight * 32, -128, 127).astype(np.int8)}
    values |= {"ws": np.float32(1 / 32), "wz": np.int8(0), "ys": np.float32(1.0), "yz": np.uint8(128)}
    values |= {"b": np.arange(layer.out_channels, dtype=np.int32)}
    inputs = ["q", "s", "z", "w", "ws", "wz", "ys", "yz", "b"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", inputs, ["p"], pads=[1, 1, 1, 1]),
        helper.make_node("DequantizeLinear", ["p", "ys", "yz"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    return _session(layer, threads, x, nodes, constants)


def _session(layer: Layer, threads: int, x: Array, nodes: Sequence[Any], constants: Sequence[Any]) -> Engine:
    """ONNX Runtime on nodes that make `y` from `x`."""
    import onnxruntime
    from onnx import helper

    size = [1, layer.out_channels, layer.height, layer.height]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(x.dtype), size)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", ONNX_OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads spin into our turn
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def _torch(layer: Layer, threads: int) -> Engine:
    """PyTorch's float convolution, channels last."""
    import torch

    last = torch.channels_last
    x, weight, bias = (torch.from_numpy(each) for each in _float_operands(layer))
    x, weight = x.to(memory_format=last), weight.to(memory_format=last)

    def run() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            torch.nn.functional.conv2d(x, weight, bias, padding=1)

    return run


def _float_operands(layer: Layer) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, layer.channels, layer.height, layer.height), np.float32)
    weight = rng.standard_normal((layer.out_channels, layer.channels, KERNEL_SIZE, KERNEL_SIZE), np.float32)
    return x, weight, rng.standard_normal(layer.out_channels, np.float32)


_PEER: dict[str, Callable[[Layer, int], Engine]] = {"onnxruntime": _onnxruntime, "torch": _torch}
