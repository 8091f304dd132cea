"""Single layers against peers: `bconv:256x256x16` is a 3x3 convolution of 256 to 256 channels on 16x16 pixels.

What is timed is what a network pays: from a float feature map to a float feature map, packing (or quantising) and
the epilogue included, one native call a kernel. Peers run the float convolution of the same shape in the same run, in
turns; beside qconv ONNX Runtime also runs its 8-bit one (QuantizeLinear, QLinearConv, DequantizeLinear). The float
parts of a network (`float_layers`) are layers too: `attention:256x256x16` is one head of 256 channels on 16x16 tokens.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# TVM reads these when it is loaded; it would take one thread a physical core and bind us to one.
os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
os.environ.setdefault("TVM_BIND_THREADS", "0")
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "2000")  # microseconds, not milliseconds, into the peers' turns
import tvm

from edgedm.bench import float_layers
from edgedm.bench.limits import limit
from edgedm.bench.peers import Peer, resolve_peers
from edgedm.bench.timing import each_call
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
    **float_layers.KINDS,
}
KERNEL_SIZE = 3
_TVM_BIG_CORES = 1  # the affinity mode of `runtime.config_threadpool` that uses the first cores

Engine = Callable[[], object]

PEERS = {
    peer.name: peer
    for peer in (
        Peer("onnxruntime", ("onnxruntime", "onnx")),
        Peer("torch", ("torch",)),
    )
}


@dataclass(frozen=True)
class Layer:
    """A square convolution with padding 1, or one of `float_layers`."""

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
        sizes = [int(number) for number in found.groups()[1:]]
        reason = float_layers.complaint(found[1], sizes) if found[1] in float_layers.KINDS else None
        if reason:
            raise UnsupportedError(f"layer {text!r}: {reason}")
        return cls(found[1], *sizes)

    @property
    def form(self) -> float_layers.Form:
        """The operands of a float part."""
        return float_layers.form(self.kind, self.channels, self.out_channels, self.height)

    @property
    def macs(self) -> int:
        """Multiply-accumulates; 0 of what only moves data."""
        if self.kind in float_layers.KINDS:
            return float_layers.macs(self.kind, self.channels, self.out_channels, self.height)
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

    Figures: `us.<engine>.t<n>` (first decile of single calls, which other programs hardly disturb), `ratio.<peer>.t<n>`
    (peer over edgedm) and, for layers with products, `gmacs.edgedm.t<n>`; for one thread `gmacs.limit.t1` and
    `fraction.t1` of the limit (see `limits`). Details hold deciles, kernel families and shapes. `against` names peers
    (`PEERS`), or is `all` that are installed (`details["absent"]` has the others), or `none`. Raises UnsupportedError
    for an unknown layer, peer or number of threads, ToolchainError for a peer asked for by name that is not installed.
    """
    shape = Layer.parse(layer)
    chosen, absent = resolve_peers(against, PEERS)
    peers = [peer.name for peer in chosen]
    machine = resolve(target)
    ours = _Ours(shape, machine)
    bound = (
        limit("fconv" if shape.kind in float_layers.KINDS else shape.kind, machine, ours.families[-1])
        if shape.macs
        else None
    )
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
        if count == 1 and bound is not None:
            engines["limit"] = bound.run
        timing = each_call(engines, seconds)
        if count == 1 and bound is not None:
            figures["gmacs.limit.t1"] = bound.macs / timing.pop("limit").low / 1e9
        timings[f"t{count}"] = {name: vars(each) for name, each in timing.items()}
        best = timing["edgedm"].low
        figures |= {f"us.{name}.t{count}": each.low * 1e6 for name, each in timing.items()}
        figures |= {f"ratio.{name}.t{count}": each.low / best for name, each in timing.items() if name != "edgedm"}
        if bound is None:
            continue
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
        self.result: Any = None
        if layer.kind in float_layers.KINDS:
            self._add_calls(layer.form)
            return
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

    def _add_calls(self, form: float_layers.Form) -> None:
        inputs = [tvm.runtime.tensor(np.array(each)) for each in form.inputs]
        for call in form.calls:
            first, *others = [self.result if number < 0 else inputs[number] for number in call.operands]
            self.result = self._add(call.op, first, call.constants, call.attributes, others)

    def _add(
        self, op: str, x: Any, constants: Sequence[Array], attrs: dict[str, Any], others: Sequence[Any] = ()
    ) -> Any:
        """Append a kernel that reads tensor `x`, and perhaps others behind it; return its output."""
        given = [TensorSpec(tuple(each.shape), str(each.dtype)) for each in (x, *others)]
        kernel = select(op, [*given, *constants], attrs, self._target)
        kept = [index - len(given) for index in kernel.kept if index >= len(given)]
        packed = [kernel.packed(index + len(given), constants[index]) for index in kept]
        rest = [np.zeros(spec.shape, spec.dtype) for spec in (*kernel.outputs, *kernel.scratch)]
        tensors = [tvm.runtime.tensor(np.array(each)) for each in (*packed, *rest)]
        library = tvm.compile(
            tvm.IRModule({"kernel": kernel.function.with_attr("global_symbol", "kernel")}), self._target.tvm()
        )
        self._calls.append((library["kernel"], [x, *others, *tensors]))
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
    """ONNX Runtime's float layer, all optimisation, in its own layout (NCHW)."""
    from onnx import helper

    if layer.kind in float_layers.KINDS:
        return _session(threads, *float_layers.in_onnx(layer.kind, layer.form))
    x, weight, bias = _float_operands(layer)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])]
    return _session(threads, {"x": x}, nodes, {"w": weight, "b": bias})


def _onnxruntime_int8(layer: Layer, threads: int) -> Engine:
    """ONNX Runtime's convolution of uint8 codes with int8 weights, from float to float."""
    from onnx import helper

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
    return _session(threads, {"x": x}, nodes, values)


def _session(threads: int, feeds: Mapping[str, Array], nodes: Sequence[Any], constants: Mapping[str, Any]) -> Engine:
    """ONNX Runtime on nodes that make `y` from `feeds`, all float32."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, each.shape) for name, each in feeds.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", ONNX_OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads spin into our turn
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(feeds))


def _torch(layer: Layer, threads: int) -> Engine:
    """PyTorch's float layer, channels last."""
    import torch

    call = float_layers.in_torch(layer.kind, layer.form) if layer.kind in float_layers.KINDS else _torch_conv(layer)

    def run() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            call()

    return run


def _torch_conv(layer: Layer) -> Engine:
    import torch

    last = torch.channels_last
    x, weight, bias = (torch.from_numpy(each) for each in _float_operands(layer))
    x, weight = x.to(memory_format=last), weight.to(memory_format=last)
    return lambda: torch.nn.functional.conv2d(x, weight, bias, padding=1)


def _float_operands(layer: Layer) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, layer.channels, layer.height, layer.height), np.float32)
    weight = rng.standard_normal((layer.out_channels, layer.channels, KERNEL_SIZE, KERNEL_SIZE), np.float32)
    return x, weight, rng.standard_normal(layer.out_channels, np.float32)


_PEER: dict[str, Callable[[Layer, int], Engine]] = {"onnxruntime": _onnxruntime, "torch": _torch}
