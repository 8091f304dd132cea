"""Relax -> a plan: the kernel calls of one graph, in order, on tensors with fixed places.

After Relax has legalised and fused everything, a graph of static shapes is a straight line of allocations, kernel
calls and reshapes. The plan resolves reshapes to views, gives every buffer its place (arena, weights, an input or
an output of the graph) and lists the calls.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from edgedm.errors import UnsupportedError
from edgedm.lower.importer import KernelCall
from edgedm.lower.memory import Lifetime, plan_arena
from edgedm.lower.strips import cut_strips
from edgedm.lower.tensors import Buffer, Call, Chain, Tensor
from edgedm.lower.weights import Weights
from edgedm.targets import Target

_PASSES = (
    relax.transform.RewriteDataflowReshape,
    relax.transform.ToNonDataflow,
    relax.transform.RemovePurityChecking,
    relax.transform.CallTIRRewrite,
)


@dataclass(frozen=True)
class Plan:
    """One graph, ready to be written as C. `copies` maps an output's number to the tensor to copy there at the end."""

    calls: list[Call]
    chains: list[Chain]
    inputs: list[Tensor]
    outputs: list[Tensor]
    copies: dict[int, Tensor]
    arena_bytes: int
    functions: Mapping[str, Any] = field(repr=False)


def make_plan(module: Any, kernel_calls: list[KernelCall], weights: Weights, reader: int, target: Target) -> Plan:
    """Lower `module` as far as kernel calls, put its constants into `weights` for `reader` and plan its memory."""
    with target.tvm():
        module = relax.get_pipeline("zero")(module)
        module = tvm.ir.transform.Sequential([each() for each in _PASSES])(module)
    walk = _Walk(weights, reader)
    results = walk.function(module["main"])
    calls = _match(walk.calls, kernel_calls)
    outputs, copies = _bind_outputs(results)
    calls, chains, made = cut_strips(calls, results, target)
    arena_bytes = _place(calls, chains, copies)
    names = {name for call in calls for name in call.functions}
    functions = {variable.name_hint: f for variable, f in module.functions.items() if variable.name_hint in names}
    return Plan(calls, chains, walk.inputs, outputs, copies, arena_bytes, {**functions, **made})


def move_weights(plans: Sequence[Plan], moved: Mapping[int, int]) -> None:
    """Let the constants of `plans` lie at `moved[offset]`. In place, once, as buffers are."""
    tensors = [
        tensor for plan in plans for call in plan.calls for tensor in (*call.inputs, *call.outputs, *call.scratch)
    ]
    tensors += [tensor for plan in plans for tensor in plan.copies.values()]
    for buffer in {id(tensor.buffer): tensor.buffer for tensor in tensors}.values():
        if buffer.place == "weights":
            buffer.offset = moved[buffer.offset]


class _Walk:
    """Turns the straight line of bindings into calls on tensors."""

    def __init__(self, weights: Weights, reader: int) -> None:
        self.weights, self.reader = weights, reader
        self.calls: list[Call] = []
        self.inputs: list[Tensor] = []
        self._values: dict[Any, Tensor | list[Tensor]] = {}
        self._written: set[Buffer] = set()

    def function(self, main: Any) -> list[Tensor]:
        for number, parameter in enumerate(main.params):
            tensor = _tensor(parameter.ty, Buffer("input", _bytes(parameter.ty), number))
            self._values[parameter] = tensor
            self.inputs.append(tensor)
        for block in main.body.blocks:
            for binding in block.bindings:
                self._bind(binding.var, binding.value)
        result = self._read(main.body.body)
        return result if isinstance(result, list) else [result]

    def _bind(self, variable: Any, value: Any) -> None:
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar):
            self._call(value)
        elif isinstance(value, relax.Call) and value.op.name == "relax.builtin.alloc_tensor":
            shape, dtype = [int(size) for size in value.args[0]], str(value.args[1].value)
            buffer = Buffer("arena", math.prod(shape) * np.dtype(dtype).itemsize)
            self._values[variable] = Tensor(buffer, tuple(shape), dtype)
        elif isinstance(value, relax.Call) and value.op.name == "relax.reshape":
            source = self._one(value.args[0])
            self._values[variable] = _tensor(variable.ty, source.buffer)
        else:
            self._values[variable] = self._read(value)

    def _call(self, call: Any) -> None:
        tensors = tuple(self._one(argument) for argument in call.args)
        # CallTIRRewrite appends the outputs to the arguments: they are the arena tensors that nobody has written
        fresh = [each.buffer.place == "arena" and each.buffer not in self._written for each in tensors]
        inputs = tuple(each for each, new in zip(tensors, fresh, strict=True) if not new)
        outputs = tuple(each for each, new in zip(tensors, fresh, strict=True) if new)
        if tensors != inputs + outputs:
            raise AssertionError(f"kernel {call.op.name_hint}: an output stands before an input")
        self._written.update(each.buffer for each in outputs)
        self.calls.append(Call(call.op.name_hint, inputs, outputs))

    def _read(self, value: Any) -> Tensor | list[Tensor]:
        if isinstance(value, relax.Tuple):
            return [self._one(each) for each in value.fields]
        if isinstance(value, relax.TupleGetItem):
            items = self._read(value.tuple_value)
            assert isinstance(items, list)
            return items[int(value.index)]
        if value in self._values:
            return self._values[value]
        if hasattr(value, "value") and hasattr(value.value, "numpy"):
            return self._constant(value.value.numpy())
        raise UnsupportedError(f"lowering left {value} ({type(value).__name__}), which the runtime cannot execute")

    def _one(self, value: Any) -> Tensor:
        result = self._read(value)
        assert isinstance(result, Tensor)
        return result

    def _constant(self, array: NDArray[Any]) -> Tensor:
        offset = self.weights.add(array, self.reader)
        return Tensor(Buffer("weights", array.nbytes, offset), tuple(array.shape), str(array.dtype))


def _match(calls: list[Call], kernel_calls: list[KernelCall]) -> list[Call]:
    """Give every call of an edgedm kernel its ONNX node: both stand in the same order."""
    waiting = iter(kernel_calls)
    ours = {each.function for each in kernel_calls}
    matched = []
    for call in calls:
        if call.function not in ours:
            matched.append(call)
            continue
        origin = next(waiting, None)
        if origin is None or origin.function != call.function:
            raise AssertionError(f"lowering changed the order of kernel calls at {call.function}")
        count = len(origin.kernel.outputs)
        outputs, scratch = call.outputs[:count], call.outputs[count:]
        matched.append(Call(call.function, call.inputs, outputs, scratch, origin))
    if next(waiting, None) is not None:
        raise AssertionError("lowering dropped a kernel call")
    return matched


def _bind_outputs(results: list[Tensor]) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Let kernels write straight into the graph's outputs; what lies elsewhere already is copied at the end."""
    outputs, copies = [], {}
    for number, tensor in enumerate(results):
        if tensor.buffer.place == "arena":
            tensor.buffer.place, tensor.buffer.offset = "output", number
            outputs.append(tensor)
        else:
            outputs.append(Tensor(Buffer("output", tensor.nbytes, number), tensor.shape, tensor.dtype))
            copies[number] = tensor
    return outputs, copies


def _place(calls: list[Call], chains: list[Chain], copies: Mapping[int, Tensor]) -> int:
    spans = {number: (chain.first, chain.first + chain.count - 1) for chain in chains for number in _numbers(chain)}
    buffers: dict[Buffer, None] = {}
    for index, call in enumerate(calls):
        first, last = spans.get(index, (index, index))  # calls of a chain take turns: all that they touch is there
        for tensor in (*call.inputs, *call.outputs, *call.scratch):
            buffer = tensor.buffer
            buffers[buffer] = None
            buffer.first = first if buffer.first < 0 else buffer.first
            buffer.last = last
    for tensor in copies.values():
        tensor.buffer.last = len(calls)
    arena = [each for each in buffers if each.place in ("arena", "strips")]
    offsets, total = plan_arena([Lifetime(each.size, each.first, each.last) for each in arena])
    for buffer, offset in zip(arena, offsets, strict=True):
        buffer.offset = offset
    return total


def _numbers(chain: Chain) -> range:
    return range(chain.first, chain.first + chain.count)


def _tensor(ty: Any, buffer: Buffer) -> Tensor:
    return Tensor(buffer, tuple(int(size) for size in ty.shape), str(ty.dtype.dtype))


def _bytes(ty: Any) -> int:
    return math.prod(int(size) for size in ty.shape) * np.dtype(str(ty.dtype.dtype)).itemsize
