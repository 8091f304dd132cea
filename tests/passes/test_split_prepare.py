import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pass_testing import graph, random_feeds, run, text_of

from edgedm.errors import UnsupportedError
from edgedm.export.graph_io import GraphInfo, graph_info, set_graph_info
from edgedm.passes.split_prepare import PREPARE, ROWS_KEY, SplitPrepare

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
ROLES = {"x": "x", "timestep": "timestep", "class_labels": "class_labels", "state.a": "state"}


def split(body, outputs="float[1,4] eps", **constants):
    text = f"g (float[1,4] x, int64[1] timestep, int64[1] class_labels, float[1,4] state.a) => ({outputs}) {{ {body} }}"
    model = graph(text.replace("state.a", "state_a"), **constants)
    for value in model.graph.inputs:
        value.name = value.name.replace("state_a", "state.a")
    set_graph_info(model, GraphInfo("exported", {"k": 1}, ROLES))
    before = model.clone()
    report = SplitPrepare()(model)
    for each in (model, model.meta[PREPARE]):
        onnx.checker.check_model(ir.serde.serialize_model(each), full_check=True)
    feeds = random_feeds(before)
    feeds["class_labels"] = np.array([2])
    rows = run(model.meta[PREPARE], {name: feeds[name] for name in names(model.meta[PREPARE].graph.inputs)})
    known = feeds | dict(zip(names(model.meta[PREPARE].graph.outputs), rows, strict=True))
    new = run(model, {name: known[name] for name in names(model.graph.inputs)})
    for left, right in zip(run(before, feeds), new, strict=True):
        assert left.tobytes() == right.tobytes()
    return model, model.meta[PREPARE], report


def names(values):
    return [value.name for value in values]


BODY = """t = Cast<to=1>(timestep)
          e = Gather(embedding, class_labels)
          r = Mul(e, t)
          h = Add(x, r)
          c = Mul(h, e)
          eps = Add(c, state_a)"""
EMBEDDING = np.random.default_rng(6).standard_normal((3, 4)).astype(np.float32)


def test_what_needs_no_x_moves_to_the_prepare_graph():
    step, prepare, report = split(BODY, embedding=EMBEDDING)
    assert names(prepare.graph.inputs) == ["timestep", "class_labels"]
    assert names(prepare.graph.outputs) == ["row.0", "row.1"]
    assert names(step.graph.inputs) == ["x", "state.a", "row.0", "row.1"]
    assert [node.op_type for node in step.graph] == ["Add", "Mul", "Add"]
    assert report.notes == {"rows": 2, "rows.values": 8.0}


def test_both_graphs_say_what_they_are():
    step, prepare, _ = split(BODY, embedding=EMBEDDING)
    assert graph_info(step).level == "deployed"
    assert graph_info(prepare).level == "prepare"
    assert graph_info(step).inputs == {"x": "x", "state.a": "state", "row.0": "row", "row.1": "row"}
    assert graph_info(step).config == graph_info(prepare).config == {"k": 1}
    assert json.loads(step.metadata_props[ROWS_KEY]) == {"row.0": "m.e", "row.1": "m.r"}


def test_a_timestep_that_the_step_reads_after_a_cast_becomes_a_row():
    step, prepare, _ = split("t = Cast<to=1>(timestep) s = Mul(x, t) eps = Add(s, state_a)")
    assert [node.op_type for node in prepare.graph] == ["Cast"]
    assert names(step.graph.inputs) == ["x", "state.a", "row.0"]


def test_a_prepared_input_that_is_read_with_x_crosses_through_an_identity():
    step, prepare, _ = split("i = Gather<axis=1>(x, class_labels) eps = Add(i, state_a)")
    assert [node.op_type for node in prepare.graph] == ["Identity"]
    assert names(step.graph.inputs) == ["x", "state.a", "row.0"]


@SETTINGS
@given(
    st.lists(
        st.tuples(st.sampled_from(["Add", "Sub", "Mul"]), st.integers(0, 99), st.integers(0, 99)),
        min_size=1,
        max_size=12,
    )
)
def test_any_graph_computes_the_same_in_two_and_leaves_nothing_of_time_in_the_step(operations):
    """Values of x, the state, time, label and constants with any number of readers, none included."""
    values = ["x", "state_a", "t", "e", "scale"]
    lines = ["t = Cast<to=1>(timestep)", "e = Gather(embedding, class_labels)"]
    for number, (op, left, right) in enumerate(operations):
        lines.append(f"v{number} = {op}({values[left % len(values)]}, {values[right % len(values)]})")
        values.append(f"v{number}")
    lines.append(f"last = Mul({values[-1]}, t) scaled = Mul(x, scale) eps = Add(last, scaled)")
    step, _, _ = split(" ".join(lines), embedding=EMBEDDING, scale=np.array([[0.5, -2, 1, 3]], np.float32))
    rows = {value for value in step.graph.inputs if value.name.startswith("row.")}
    fixed = set(step.graph.initializers.values())
    assert rows and not any(rows & set(node.inputs) and set(node.inputs) <= rows | fixed for node in step.graph)


def test_splitting_a_split_graph_changes_nothing():
    step, _, _ = split(BODY, embedding=EMBEDDING)
    once = text_of(step)
    again = SplitPrepare()(step)
    assert text_of(step) == once
    assert not again.rewritten


def test_a_graph_without_a_timestep_is_refused():
    with pytest.raises(UnsupportedError, match="nothing in the graph depends on class_labels or timestep"):
        split("eps = Add(x, state_a)")


def test_an_output_that_does_not_depend_on_x_is_refused():
    with pytest.raises(UnsupportedError, match="SplitPrepare: output 'eps'"):
        split("t = Cast<to=1>(timestep) eps = Expand(t, shape)", shape=np.array([1, 4]))
