"""Move what depends on timestep and conditions only into a second graph, run once when a schedule is chosen.

Given   eps = Step(x, state, f(timestep, class_labels))
Result  prepare: row.0, row.1, ... = f(timestep, class_labels);   step: eps = Step(x, state, row.0, row.1, ...)

The step graph stays in the model; the prepare graph is left in `model.meta[PREPARE]`. Rows are numbered in the order
of their making; the metadata `edgedm.rows` of both graphs maps each to the torch module that it comes from. Exact:
the same nodes, in two graphs.
"""

import json

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgedm.errors import UnsupportedError
from edgedm.export.graph_io import GraphInfo, graph_info, set_graph_info
from edgedm.ops import attach_functions
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import MODULE, Editor, dims

PREPARE = "edgedm.prepare"
ROWS_KEY = "edgedm.rows"
_FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)
"""Nothing of these types crosses: no runtime hands them over. What they are cast from crosses instead."""

PREPARED_ROLES = ("timestep", "class_labels", "encoder_hidden_states")


class SplitPrepare(GraphPass):
    """One graph -> step graph (the model) and prepare graph (`model.meta[PREPARE]`)."""

    changes_interface = True

    def rewrite(self, model: ir.Model, editor: Editor) -> dict[str, float] | None:
        """See the module."""
        info = graph_info(model)
        if info.level != "exported":
            return None
        prepared = {name for name, role in info.inputs.items() if role in PREPARED_ROLES}
        _copy_inputs(editor, prepared)
        crossing = _crossing(editor.graph, prepared)
        if not crossing:
            raise UnsupportedError(f"nothing in the graph depends on {' or '.join(sorted(prepared))}: no denoiser")
        names = {value.name or "": f"row.{index}" for index, value in enumerate(crossing)}
        rows = {names[value.name or ""]: _module_of(value) for value in crossing}
        model.meta[PREPARE] = _prepare(model, info, names, rows)
        _leave_step(model, info, crossing, names, rows)
        editor.rewritten.extend(names.values())
        return {"rows": len(names), "rows.values": float(sum(np.prod(dims(value)) for value in crossing))}


def _static_values(graph: ir.Graph, prepared: set[str]) -> set[ir.Value]:
    """Every value that depends on prepared inputs and on no others, less the 4-bit ones that the step would read."""
    kept: set[ir.Node | None] = set()
    while True:
        static = _dependent(graph, prepared, kept)
        narrow = [value for value in static if value.dtype in _FOUR_BITS]
        crossing = {value.producer() for value in narrow if any(not _makes(user, static) for user in value.consumers())}
        if not crossing:
            return static
        kept |= crossing


def _dependent(graph: ir.Graph, prepared: set[str], kept: set[ir.Node | None]) -> set[ir.Value]:
    """Every value that depends on prepared inputs only; the nodes `kept` stay in the step."""
    static = {value for value in graph.inputs if value.name in prepared}
    fixed = set(graph.initializers.values())
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if node not in kept and all(value in static or value in fixed for value in inputs):
            made = fixed if all(value in fixed for value in inputs) else static
            made.update(node.outputs)
    return static


def _copy_inputs(editor: Editor, prepared: set[str]) -> None:
    """Put an Identity behind a prepared input that the step reads itself, so that it crosses as a row."""
    graph = editor.graph
    static = _static_values(graph, prepared)
    for value in [value for value in graph.inputs if value in static]:
        readers = [(node, index) for node, index in value.uses() if not _makes(node, static)]
        for node, index in readers:
            output = (f"{value.name}.row", value.dtype or ir.DataType.INT64, dims(value))
            node.replace_input_with(index, editor.add("Identity", [value], next(iter(graph)), [output])[0])


def _makes(node: ir.Node, values: set[ir.Value]) -> bool:
    return any(output in values for output in node.outputs)


def _crossing(graph: ir.Graph, prepared: set[str]) -> list[ir.Value]:
    """What the prepare graph makes and the step reads, in order."""
    static = _static_values(graph, prepared)
    found = []
    for node in graph:
        for value in node.outputs:
            if value not in static:
                continue
            if value.is_graph_output():
                raise UnsupportedError(f"output {value.name!r} depends on timestep and conditions only, not on x")
            if any(not _makes(user, static) for user in value.consumers()):
                found.append(value)
    return found


def _module_of(value: ir.Value) -> str:
    """The module that a row comes from: of its maker, or of its reader where that is a mere move."""
    producer = value.producer()
    module = None if producer is None else producer.metadata_props.get(MODULE)
    return module or next((user.metadata_props.get(MODULE, "") for user in value.consumers()), "")


def _prepare(model: ir.Model, info: GraphInfo, names: dict[str, str], rows: dict[str, str]) -> ir.Model:
    prepare = model.clone()
    graph = prepare.graph
    by_name = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    for old, new in names.items():
        by_name[old].name = new
        graph.outputs.append(by_name[old])
    RemoveUnusedNodesPass()(prepare)
    inputs = {name: role for name, role in info.inputs.items() if role in PREPARED_ROLES}
    _keep_inputs(graph, inputs)
    set_graph_info(prepare, GraphInfo("prepare", info.config, inputs))
    prepare.metadata_props[ROWS_KEY] = json.dumps(rows)
    attach_functions(prepare)
    return prepare


def _leave_step(
    model: ir.Model, info: GraphInfo, crossing: list[ir.Value], names: dict[str, str], rows: dict[str, str]
) -> None:
    graph = model.graph
    inputs = {name: role for name, role in info.inputs.items() if role not in PREPARED_ROLES}
    for value in crossing:
        name = names[value.name or ""]
        row = ir.Value(name=name, type=value.type, shape=value.shape)
        value.replace_all_uses_with(row)
        graph.inputs.append(row)
        inputs[name] = "row"
    RemoveUnusedNodesPass()(model)
    _keep_inputs(graph, inputs)
    set_graph_info(model, GraphInfo("deployed", info.config, inputs))
    model.metadata_props[ROWS_KEY] = json.dumps(rows)


def _keep_inputs(graph: ir.Graph, names: dict[str, str]) -> None:
    kept = [value for value in graph.inputs if value.name in names]
    graph.inputs.clear()
    graph.inputs.extend(kept)
