"""A bundle whose graphs are not those of its manifest is refused by the graph's file, whatever the hashes say."""

import shutil

import faults
import onnx
import pytest
import tiny

from edgedm.bundle import load
from edgedm.errors import InvalidModelError
from edgedm.verify import verify
from edgedm.verify.lowered import load_lowered


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.name = new if item.name == old else item.name


def a_value_renamed(manifest, graph):
    rename(graph, next(node for node in manifest.nodes if node.graph == "step" and node.node).outputs[0].name, "other")


def an_input_renamed(manifest, graph):
    rename(graph, manifest.inputs["step"][-1].name, "other")


def an_input_of_another_size(_manifest, graph):
    graph.input[-1].type.tensor_type.shape.dim[-1].dim_value += 1


def another_op(manifest, graph):
    made = next(node for node in manifest.nodes if node.op in ("GroupNorm", "GroupNormSilu")).outputs[0].name
    node = next(node for node in graph.node if made in node.output)
    node.op_type = "GroupNormSilu" if node.op_type == "GroupNorm" else "GroupNorm"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (a_value_renamed, "makes"),
        (an_input_renamed, "expected inputs"),
        (an_input_of_another_size, "don't fit"),
        (another_op, "no node GroupNorm"),
    ],
)
def test_a_graph_that_the_manifest_does_not_describe_is_refused_by_its_file(bundle, tmp_path, change, said):
    broken = shutil.copytree(bundle("binarydm"), tmp_path / "b")
    path = broken / "golden" / "step.onnx"
    model = onnx.load(path)
    change(load(broken).manifest, model.graph)
    onnx.save(model, path)
    faults.seal(broken)
    with pytest.raises(InvalidModelError, match=rf"step\.onnx: .*{said}"):
        verify(broken, tiny.checkpoint("binarydm"), levels=("op",), steps=10)


def test_the_graph_of_another_model_is_refused(bundle, tmp_path):
    broken = shutil.copytree(bundle("binarydm"), tmp_path / "b")
    shutil.copyfile(bundle("w4a4") / "golden" / "step.onnx", broken / "golden" / "step.onnx")
    faults.seal(broken)
    with pytest.raises(InvalidModelError, match=r"step\.onnx: .*compile the bundle again"):
        load_lowered(load(broken), "step")
