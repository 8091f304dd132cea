"""Read and write graphs: the only door through which ONNX files enter and leave edgedm.

A file is validated before anything acts on it: its size, its protobuf, no data outside the file, tensors as long as
their shapes say, known domains and dtypes, static inputs, onnx's own full check, and shapes that fit all the way
through. The functions of the `edgedm` domain inside a file are never trusted: they are replaced by ours.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from onnx.checker import ValidationError

from edgedm.atomic import atomic_file
from edgedm.atomic_files import check_settled
from edgedm.diffusion import NoiseSchedule
from edgedm.errors import EdgedmError, InvalidModelError, UnsupportedError
from edgedm.files import check_regular, parse_json
from edgedm.ops import DOMAIN, FUNCTIONS, ONNX_OPSET, VERSION, attach_functions, infer_shapes

CONFIG_KEY, LEVEL_KEY, INPUTS_KEY = "edgedm.config", "edgedm.level", "edgedm.inputs"
MODULE_KEY = "edgedm.module"  # on nodes: the torch module that a node comes from
_PATH, _ALTERED = "edgedm.path", "edgedm.altered"  # in a loaded model's meta, which no file holds
LEVELS = ("exported", "deployed", "prepare", "decoder")

MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit
MAX_VALUE_BYTES = 2**31  # of one activation; far above what the targets hold
MAX_AXES = 16
MAX_NODES = 100_000  # sixty times those of a latent diffusion model as exported; each takes 0.1 ms to look at
_IR_VERSIONS = range(8, 14)
_DTYPES = {
    ir.DataType.FLOAT,
    ir.DataType.INT64,
    ir.DataType.INT32,
    ir.DataType.UINT8,
    ir.DataType.INT8,
    ir.DataType.UINT4,
    ir.DataType.INT4,
    ir.DataType.BOOL,
}
_CODES = {int(dtype): dtype for dtype in _DTYPES}


@dataclass(frozen=True)
class GraphInfo:
    """What a graph says about itself in its metadata.

    `config` is the checkpoint's config; `inputs` maps every input's name to its role: x, timestep, class_labels,
    encoder_hidden_states, has_state, state, row (an output of the prepare graph), or latent (of a decoder).
    """

    level: str
    config: dict[str, Any]
    inputs: dict[str, str]


def load_graph(path: str | os.PathLike[str]) -> ir.Model:
    """Read and validate one ONNX file; its `edgedm` functions are ours and its values have static shapes.

    Raises InvalidModelError for a missing, truncated, altered, inconsistent or half-written file and UnsupportedError
    for contents that edgedm doesn't handle, naming the node or tensor.
    """
    path = Path(path)
    check_settled(path)
    proto = _parse(path)
    try:
        _check_imports(proto)
        _check_names(proto)
        _check_nodes(proto)
        _check_inputs(proto)
        _check_tensors(proto)
        altered = _use_our_functions(proto)
        onnx.checker.check_model(proto, full_check=True)
        model = ir.serde.deserialize_model(proto)
        declared = {value.name: value.shape for value in model.graph.outputs}
        infer_shapes(model)
        _check_values(model, declared)
    except (InvalidModelError, UnsupportedError) as error:
        raise type(error)(f"{path}: {error}") from error
    except (ValidationError, onnx.shape_inference.InferenceError, ir.serde.SerdeError, ValueError) as error:
        raise InvalidModelError(f"{path}: not a valid ONNX graph: {error}; export it again") from error
    model.meta[_PATH] = str(path)  # for what is said of it later
    model.meta[_ALTERED] = altered
    return model


def altered_functions(model: ir.Model) -> list[str]:
    """The functions that had another body in the file that `model` was loaded from: other runtimes use that one."""
    return list(model.meta.get(_ALTERED, ()))


def save_graph(model: ir.Model, path: str | os.PathLike[str]) -> int:
    """Write `serialize_graph(model)` to `path`, whole or not at all; return its bytes."""
    data = serialize_graph(model)
    with atomic_file(path) as scratch:
        scratch.write_bytes(data)
    return len(data)


def serialize_graph(model: ir.Model) -> bytes:
    """Attach the functions in use, run onnx's full check and return the file's bytes; equal graphs, equal bytes.

    Raises UnsupportedError where the file would pass 2 GiB. A graph that fails onnx's check is a bug of the
    caller: onnx's ValidationError passes through.
    """
    attach_functions(model)
    proto = ir.serde.serialize_model(model)
    size = int(proto.ByteSize())
    if size > MAX_FILE_BYTES:
        raise UnsupportedError(f"graph of {size} bytes; one ONNX file holds at most {MAX_FILE_BYTES}")
    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def graph_info(model: ir.Model) -> GraphInfo:
    """Read a graph's metadata; InvalidModelError where it is missing or broken."""
    found, label = model.metadata_props, _label(model)
    missing = [key for key in (CONFIG_KEY, LEVEL_KEY, INPUTS_KEY) if key not in found]
    if missing:
        raise InvalidModelError(f"{label}: no metadata {missing}; write it with `edgedm export`")
    try:
        config = parse_json(found[CONFIG_KEY])
        inputs = {str(entry["name"]): str(entry["role"]) for entry in parse_json(found[INPUTS_KEY])}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidModelError(f"{label}: broken metadata: {error!r}") from error
    names = [value.name for value in model.graph.inputs]
    if found[LEVEL_KEY] not in LEVELS or not isinstance(config, dict) or sorted(inputs) != sorted(map(str, names)):
        raise InvalidModelError(
            f"{label}: expected a level of {LEVELS}, a config object and the inputs {names}; "
            f"got level {found[LEVEL_KEY]!r} and inputs {sorted(inputs)}"
        )
    return GraphInfo(found[LEVEL_KEY], config, inputs)


def noise_schedule(model: ir.Model) -> NoiseSchedule:
    """Read the noise schedule in a graph's metadata; an error names the graph's file."""
    config = graph_info(model).config
    given = config.get("noise_schedule")
    if not isinstance(given, dict):
        raise InvalidModelError(f"{_label(model)}: the config has no noise_schedule; write it with `edgedm export`")
    try:
        return NoiseSchedule.from_config({"prediction_type": config.get("prediction_type", "epsilon"), **given})
    except EdgedmError as error:
        raise type(error)(f"{_label(model)}: {error}") from error


def labels(config: dict[str, Any]) -> int | None:
    """How many labels the model of a graph's config embeds, the one that means none included; None if it takes none."""
    found: Any = config
    for key in ("architecture", "config", "num_class_embeds"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, int) else None


def _label(model: ir.Model) -> str:
    return str(model.meta.get(_PATH, f"graph {model.graph.name!r}"))


def set_graph_info(model: ir.Model, info: GraphInfo) -> None:
    """Write `info` into the model's metadata, where `graph_info` reads it."""
    entries = [{"name": name, "role": role} for name, role in info.inputs.items()]
    model.metadata_props[LEVEL_KEY] = info.level
    model.metadata_props[CONFIG_KEY] = json.dumps(info.config, sort_keys=True)
    model.metadata_props[INPUTS_KEY] = json.dumps(entries)


def _parse(path: Path) -> onnx.ModelProto:
    if not os.path.lexists(path):
        raise InvalidModelError(f"{path}: no such file; expected an ONNX graph written by `edgedm export`")
    size = check_regular(path)
    if not 0 < size <= MAX_FILE_BYTES:
        raise InvalidModelError(f"{path}: {size} bytes; expected an ONNX file of 1..{MAX_FILE_BYTES} bytes")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise InvalidModelError(f"{path}: not an ONNX file, or a truncated one ({error}); export it again") from error
    if not proto.HasField("graph"):
        raise InvalidModelError(f"{path}: an ONNX file without a graph; export it again")
    return proto


def _check_imports(proto: onnx.ModelProto) -> None:
    expected = {"": ONNX_OPSET, DOMAIN: VERSION}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if domain in expected and entry.version != expected[domain]:
            raise UnsupportedError(
                f"operator set {domain or 'ai.onnx'!r} version {entry.version}: expected {expected[domain]}; "
                "export the checkpoint with this version of edgedm"
            )
    if proto.ir_version not in _IR_VERSIONS:
        raise UnsupportedError(f"ONNX IR version {proto.ir_version}: expected {_IR_VERSIONS[0]}..{_IR_VERSIONS[-1]}")


def _check_nodes(proto: onnx.ModelProto) -> None:
    """Only standard ops and ours, and no subgraphs: control flow cannot be planned statically."""
    if len(proto.graph.node) > MAX_NODES:
        raise UnsupportedError(f"{len(proto.graph.node)} nodes; expected at most {MAX_NODES}")
    for node in proto.graph.node:
        if not all(isinstance(name, str) for name in (node.name, node.op_type, *node.input, *node.output)):
            raise InvalidModelError(f"node {node.name!r}: a name that is not UTF-8")
        label = f"node {node.name or ', '.join(node.output)!r}"
        if node.domain not in ("", "ai.onnx", DOMAIN) or (node.domain == DOMAIN and node.op_type not in FUNCTIONS):
            raise UnsupportedError(
                f"{label}: unknown op {node.domain}.{node.op_type}; edgedm handles ONNX's standard ops and "
                f"{DOMAIN}.{{{', '.join(FUNCTIONS)}}}"
            )
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise UnsupportedError(f"{label}: {node.op_type} holds a subgraph; control flow is not supported")
        for attribute in node.attribute:
            if not all(map(math.isfinite, (attribute.f, *attribute.floats))):
                raise InvalidModelError(f"{label}: attribute {attribute.name!r} is NaN or infinite")
        _check_once(f"{label}: attribute", (attribute.name for attribute in node.attribute))


def _check_tensors(proto: onnx.ModelProto) -> None:
    if proto.graph.sparse_initializer:
        raise UnsupportedError("sparse initialisers are not supported; store them dense")
    for name, tensor in _tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise UnsupportedError(f"tensor {name!r}: its data lie outside the file; store them inside")
        if len(tensor.dims) > MAX_AXES:
            raise UnsupportedError(f"tensor {name!r}: {len(tensor.dims)} axes; expected at most {MAX_AXES}")
        if any(dim < 0 for dim in tensor.dims):
            raise InvalidModelError(f"tensor {name!r}: negative dimension in {list(tensor.dims)}")
        if 0 in tensor.dims and list(tensor.dims) != [0]:  # [0]: an operand that is left out, such as Resize's roi
            raise InvalidModelError(f"tensor {name!r}: a dimension of zero in {list(tensor.dims)}")
        dtype = _CODES.get(tensor.data_type)
        if dtype is None:
            raise UnsupportedError(f"tensor {name!r}: ONNX dtype {tensor.data_type}; expected one of {_names(_DTYPES)}")
        _check_length(name, tensor, dtype)
        if dtype == ir.DataType.FLOAT and not np.isfinite(onnx.numpy_helper.to_array(tensor)).all():
            raise InvalidModelError(f"tensor {name!r}: holds NaN or infinity; expected finite numbers")


def _check_names(proto: onnx.ModelProto) -> None:
    """No name means two things: readers would take different ones."""
    graph = proto.graph
    made = (name for node in graph.node for name in node.output if name)
    _check_once("value", (*(each.name for each in graph.input), *made))
    _check_once("tensor", (each.name for each in graph.initializer))
    _check_once("output", (each.name for each in graph.output))
    _check_once("metadata", (each.key for each in proto.metadata_props))
    _check_once("operator set", ("" if each.domain == "ai.onnx" else each.domain for each in proto.opset_import))


def _check_once(what: str, names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InvalidModelError(f"{what} {twice[0]!r} stands twice")


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                yield f"{node.name}.{attribute.name}", tensor


def _check_length(name: str, tensor: onnx.TensorProto, dtype: ir.DataType) -> None:
    """Compare the bytes that are there with those that dtype and shape ask for; nothing is allocated."""
    elements = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        expected, got, unit = math.ceil(elements * dtype.itemsize), len(tensor.raw_data), "bytes"
    else:
        fields = (tensor.float_data, tensor.int32_data, tensor.int64_data)
        packed = dtype in (ir.DataType.INT4, ir.DataType.UINT4)  # two to an int32 entry
        expected, got, unit = (-(-elements // 2) if packed else elements), sum(map(len, fields)), "values"
    if expected != got:
        raise InvalidModelError(
            f"tensor {name!r}: {dtype} {list(tensor.dims)} asks for {expected} {unit}, the file holds {got}"
        )


def _use_our_functions(proto: onnx.ModelProto) -> list[str]:
    """Replace the bodies of all functions by ours; return the names of those that had another."""
    for function in proto.functions:
        if function.domain != DOMAIN or function.name not in FUNCTIONS:
            raise UnsupportedError(f"function {function.domain}.{function.name}: only those of {DOMAIN} are known")
    used = sorted({node.op_type for node in proto.graph.node if node.domain == DOMAIN})
    missing = set(used) - {function.name for function in proto.functions}
    if missing:
        raise InvalidModelError(f"the functions {sorted(missing)} are missing: a truncated file; export it again")
    ours = {name: ir.serde.serialize_function(FUNCTIONS[name]) for name in used}
    altered = [each.name for each in proto.functions if each.name in ours and not _same_body(each, ours[each.name])]
    del proto.functions[:]
    proto.functions.extend(ours.values())
    return altered


def _same_body(left: onnx.FunctionProto, right: onnx.FunctionProto) -> bool:
    """Whether two functions do the same, node by node; what only describes them may differ."""

    def nodes(function: onnx.FunctionProto) -> list[Any]:
        return [
            (
                *(node.domain, node.op_type, list(node.input), list(node.output)),
                sorted(each.SerializeToString(deterministic=True) for each in node.attribute),
            )
            for node in function.node
        ]

    def defaults(function: onnx.FunctionProto) -> list[bytes]:
        return sorted(each.SerializeToString(deterministic=True) for each in function.attribute_proto)

    def names(function: onnx.FunctionProto) -> list[list[str]]:
        return [list(function.input), list(function.output), sorted(map(str, function.attribute))]

    return (names(left), defaults(left), nodes(left)) == (names(right), defaults(right), nodes(right))


def _check_inputs(proto: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in proto.graph.initializer}
    for entry in proto.graph.input:
        if entry.name in constants:
            raise UnsupportedError(f"input {entry.name!r} is also an initialiser; remove it from the inputs")
        tensor = entry.type.tensor_type
        if tensor.elem_type not in _CODES:
            raise UnsupportedError(
                f"input {entry.name!r}: ONNX dtype {tensor.elem_type}; expected one of {_names(_DTYPES)}"
            )
        if not tensor.HasField("shape") or not all(dim.dim_value > 0 for dim in tensor.shape.dim):
            raise UnsupportedError(f"input {entry.name!r}: expected a static shape of one image")


def _check_values(model: ir.Model, declared: dict[str | None, ir.Shape | None]) -> None:
    for value in _values(model):
        if value.shape is None or value.dtype not in _DTYPES:
            continue
        sizes = [dim for dim in value.shape if isinstance(dim, int)]
        if 0 in sizes:
            raise InvalidModelError(f"value {value.name!r}: a dimension of zero in {value.shape}")
        elements = math.prod(sizes)
        if elements * value.dtype.itemsize > MAX_VALUE_BYTES:
            raise UnsupportedError(f"value {value.name!r}: {value.shape} is more than {MAX_VALUE_BYTES} bytes")
    for value in model.graph.outputs:
        if value.shape != declared[value.name]:
            raise InvalidModelError(f"output {value.name!r}: declared {declared[value.name]}, it is {value.shape}")


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


def _names(dtypes: Iterable[ir.DataType]) -> str:
    return ", ".join(sorted(dtype.name.lower() for dtype in dtypes))
