"""Run kernels and the ONNX functions that define their ops on the same operands.

A case holds numpy operands in ONNX layout; the kernel gets those in `runtime` at run time, the others as constants
of the graph. Many cases compile as one module: compile time dominates.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import foreign_kernels
import numpy as np
import onnx_ir as ir
import onnxruntime
import tvm
from onnx import TensorProto, helper

from edgedm.ops import DOMAIN, IR_VERSION, ONNX_OPSET, attach_functions
from edgedm.targets import Target, runs_natively
from edgedm.targets.kernels import Kernel, TensorSpec, select
from edgedm.targets.kernels.spec import as_words

_OUTPUTS = {"PackBitsMeanAbs": 2, "GroupNormSiluPack": 3}
_STANDARD = {"MatMul", "Softmax", "Transpose"}
BIG_CORES = 1  # TVM's name for any cores


@dataclass
class Case:
    op: str
    inputs: Sequence[np.ndarray]
    attrs: dict[str, Any] = field(default_factory=dict)
    runtime: frozenset[int] = frozenset({0})
    family: str | None = None


def select_case(case: Case, target: Target) -> Kernel:
    operands = [
        TensorSpec(x.shape, str(x.dtype)) if index in case.runtime else x for index, x in enumerate(case.inputs)
    ]
    return select(case.op, operands, case.attrs, target, case.family)


def compile_kernels(kernels: Sequence[Kernel], target: Target):
    functions = {symbol(kernel): kernel.function for kernel in kernels}
    return tvm.compile(tvm.IRModule(functions), target.tvm())


def assembly(kernel: Kernel, target: Target) -> str:
    return compile_kernels([kernel], target).mod.inspect_source("asm")


def runs_on_threads(case: Case, target: Target) -> bool:
    """Whether the case's kernel hands work to the thread pool, which is given two threads."""
    tvm.get_global_func("runtime.config_threadpool")(BIG_CORES, 2)  # a benchmark before may have left one
    return "parallel_lambda" in assembly(select_case(case, target), target) and tvm.runtime.num_threads() > 1


def launches(cases: Sequence[Case], target: Target) -> int:
    """How many loops of the cases' kernels, each run once, the thread pool takes."""
    library = compile_kernels([select_case(case, target) for case in cases], target)
    return len(re.findall(r"^.* call .*@__tvm_parallel_lambda", library.mod.inspect_source("ll"), re.MULTILINE))


def symbol(kernel: Kernel) -> str:
    return str(kernel.function.attrs["global_symbol"])


def arguments_of(kernel: Kernel, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What a kernel is called with: its operands in its layout, then outputs and scratch."""
    arguments = []
    for index, spec in zip(kernel.kept, kernel.inputs, strict=True):
        value = kernel.packed(index, inputs[index])
        if spec.dtype == "uint64" and value.dtype == np.uint8:
            value = as_words(value)
        assert value.shape == spec.shape
        assert str(value.dtype) == spec.dtype
        arguments.append(np.array(value, order="C"))
    # outputs and scratch start as garbage: a kernel must not count on zeros
    rest = [np.full(spec.shape, 0x5A, spec.dtype) for spec in (*kernel.outputs, *kernel.scratch)]
    return [*arguments, *rest]


def call(library, kernel: Kernel, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run one kernel."""
    tensors = [tvm.runtime.tensor(each) for each in arguments_of(kernel, inputs)]
    library[symbol(kernel)](*tensors)
    first = len(kernel.inputs)
    return [tensor.numpy() for tensor in tensors[first : first + len(kernel.outputs)]]


def run_kernels(cases: Sequence[Case], target: Target) -> list[list[np.ndarray]]:
    """Run the cases' kernels, under an emulator where need be; packed bits come back as uint8, as in ONNX."""
    kernels = [select_case(case, target) for case in cases]
    if runs_natively(target):
        library = compile_kernels(kernels, target)
        results = [call(library, kernel, case.inputs) for kernel, case in zip(kernels, cases, strict=True)]
    else:
        calls = [
            (arguments_of(kernel, case.inputs), kernel.outputs) for kernel, case in zip(kernels, cases, strict=True)
        ]
        results = foreign_kernels.run_calls(kernels, calls, target)
    return [[each.view("u1") if each.dtype == np.uint64 else each for each in outputs] for outputs in results]


def reference(case: Case) -> list[np.ndarray]:
    """The op's ONNX function under ONNX Runtime, optimisation off."""
    names = [f"i{index}" for index in range(len(case.inputs))]
    outputs = [f"o{index}" for index in range(_OUTPUTS.get(case.op, 1))]
    domain = "" if case.op in _STANDARD else DOMAIN
    node = helper.make_node(case.op, names, outputs, domain=domain, **case.attrs)
    types = [helper.np_dtype_to_tensor_dtype(x.dtype) for x in case.inputs]
    graph = helper.make_graph(
        [node],
        "case",
        [helper.make_tensor_value_info(n, t, x.shape) for n, t, x in zip(names, types, case.inputs, strict=True)],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
    )
    for output in graph.output:
        output.ClearField("type")
    opsets = [helper.make_opsetid("", ONNX_OPSET)] + ([helper.make_opsetid(DOMAIN, 1)] if domain else [])
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION))
    attach_functions(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(None, dict(zip(names, case.inputs, strict=True)))
