"""Finding the pass after which a model leaves tolerance."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from mutants import write_back

from edgedm.errors import InvalidModelError
from edgedm.export import export
from edgedm.passes import optimize, pipeline
from edgedm.passes.fuse_epilogue import FuseEpilogue
from edgedm.verify import bisect, verify
from edgedm.verify import main as bundle_main
from edgedm.verify.bisect import Chain, Dumped, first_off
from edgedm.verify.request import request_of

LAYER = "mid_block.resnets.1.conv2"


class Numbered(Chain):
    def __init__(self, count: int) -> None:
        self.names = ["export", *(f"Pass{number}" for number in range(1, count + 1))]
        self.looked: list[int] = []

    def graph(self, number: int) -> Path:
        self.looked.append(number)
        return Path(str(number))


@given(count=st.integers(1, 60), data=st.data())
def test_the_first_graph_that_does_not_hold_is_found_in_a_logarithm_of_looks(count: int, data) -> None:
    first = data.draw(st.one_of(st.none(), st.integers(0, count)))
    chain = Numbered(count)
    assert first_off(chain, lambda path: first is None or int(path.name) < first) == first
    assert len(chain.looked) <= 2 + int(np.ceil(np.log2(count + 1)))
    assert len(set(chain.looked)) == len(chain.looked)  # none twice: each is made anew


def test_a_folder_without_a_whole_chain_is_refused(tmp_path) -> None:
    for names in ((), ("00-exported.onnx",), ("00-exported.onnx", "02-Simplify.onnx")):
        for name in names:
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(InvalidModelError, match="optimize --dump"):
            Dumped(tmp_path)


class Careless(FuseEpilogue):
    """The pass, with a mistake in one multiplier."""

    def call(self, model: ir.Model):
        report = super().call(model)
        products = [node for node in model.graph if node.op_type == "QuantConv"]
        value = next(each for node in products for each in node.inputs if each and each.name == f"{LAYER}.step")
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.5), name=value.name)
        return report

    @property
    def name(self) -> str:
        return "FuseEpilogue"


@pytest.fixture
def careless(deployed, tmp_path, monkeypatch):
    """A graph that a pipeline with a careless pass made, with the graphs between its passes."""
    exported = deployed("w4a4").with_name("model.onnx")  # by the right pipeline
    passes = [
        (lambda _: Careless()) if make(pipeline.Schedule()).name == "FuseEpilogue" else make
        for make in pipeline.PIPELINE
    ]
    monkeypatch.setattr(pipeline, "PIPELINE", passes)
    monkeypatch.setattr(bisect, "PIPELINE", passes)
    optimize(exported, tmp_path / "deploy.onnx", dump=tmp_path / "chain", steps=4)
    return tmp_path


@pytest.mark.slow
def test_the_pass_that_broke_parity_is_named_with_what_it_changed(careless) -> None:
    asked = {"levels": ("step",), "steps": 4}
    outcome = verify(careless / "deploy.onnx", tiny.checkpoint("w4a4"), **asked)
    assert not outcome.ok
    cause = outcome.details["first_failure"]["introduced_by"]
    assert cause.startswith("pass FuseEpilogue: FuseEpilogue changed the model: output 'eps': ")
    dumped = verify(careless / "deploy.onnx", tiny.checkpoint("w4a4"), chain=careless / "chain", **asked)
    assert dumped.details["first_failure"]["introduced_by"] == "pass FuseEpilogue"


def chain_of(exported: Path, folder: Path) -> Path:
    """A folder like one of `optimize --dump`, of which nothing but the first graph is looked at."""
    folder.mkdir()
    for name in ("00-exported.onnx", "01-Simplify.onnx"):
        shutil.copyfile(exported, folder / name)
    return folder


@pytest.fixture
def altered(deployed, tmp_path) -> Path:
    """The deployed graph with one bit of a weight changed after all passes."""

    def edit(_proto, arrays) -> None:
        name = next(each for each in arrays if each.endswith("conv2.codes.last"))
        arrays[name][0] = (arrays[name][0].astype(np.uint8) ^ 8).astype(arrays[name].dtype)

    proto = onnx.load(deployed("w4a4"))
    write_back(proto, edit)
    onnx.save(proto, tmp_path / "deploy.onnx")
    shutil.copyfile(deployed("w4a4").with_suffix(".prepare.onnx"), tmp_path / "deploy.prepare.onnx")
    return tmp_path / "deploy.onnx"


@pytest.mark.slow
def test_a_chain_of_another_checkpoint_is_refused_or_named(altered, deployed, tmp_path) -> None:
    asked = {"levels": ("step",), "steps": 4}
    export(tiny.checkpoint("bidm"), tmp_path / "bidm.onnx")
    other = chain_of(tmp_path / "bidm.onnx", tmp_path / "other")
    with pytest.raises(InvalidModelError, match=r"00-exported.onnx was not made from this checkpoint: .*method"):
        verify(altered, tiny.checkpoint("w4a4"), chain=other, **asked)
    proto, changed = onnx.load(deployed("w4a4").with_name("model.onnx")), []

    def retrain(_proto, arrays) -> None:
        changed.append(next(name for name in arrays if name.endswith(".bias") and arrays[name].any()))
        arrays[changed[0]] *= -3

    write_back(proto, retrain)
    onnx.save(proto, tmp_path / "retrained.onnx")
    chain = chain_of(tmp_path / "retrained.onnx", tmp_path / "retrained")
    outcome = verify(altered, tiny.checkpoint("w4a4"), chain=chain, **asked)
    cause = outcome.details["first_failure"]["introduced_by"]
    assert cause.startswith("export: the exported graph is off before any pass, or of another checkpoint: ")
    assert changed[0].removeprefix("unet.") in cause


def test_a_chain_of_another_model_than_the_bundle_is_refused_with_advice_on_chains(tmp_path, monkeypatch) -> None:
    chain = tmp_path / "chain"
    chain.mkdir()
    for name in ("00-exported.onnx", "01-Simplify.onnx"):
        (chain / name).write_bytes(b"")
    monkeypatch.setattr(bisect, "load_graph", lambda _: None)
    monkeypatch.setattr(bisect, "graph_info", lambda _: SimpleNamespace(config={"method": "bidm"}))
    opened = SimpleNamespace(manifest=SimpleNamespace(config={"method": "w4a4"}))
    monkeypatch.setattr(bundle_main, "load", lambda _: None)
    monkeypatch.setattr(bundle_main, "choose", lambda *_: opened)
    asked = request_of(("op",), None, None, None, None, None, None, chain, True, None)
    with pytest.raises(
        InvalidModelError, match=r"00-exported.onnx was not made .*: method differ; name by --chain"
    ) as told:
        bundle_main.run("model.bundle", "checkpoint", asked)
    assert "checkpoint that was exported" not in str(told.value)


@pytest.mark.slow
def test_what_no_pass_did_is_called_a_change_after_them(altered) -> None:
    outcome = verify(altered, tiny.checkpoint("w4a4"), levels=("step",), steps=4)
    cause = outcome.details["first_failure"]["introduced_by"]
    assert cause.startswith("a change after the pipeline") and "conv2.codes.last" in cause and "differ" in cause
