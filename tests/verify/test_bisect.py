"""Finding the pass after which a model leaves tolerance."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
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
from edgedm.passes.base import GraphPass
from edgedm.passes.fuse_binary_weight_conv import FuseBinaryWeightConv
from edgedm.passes.fuse_epilogue import FuseEpilogue
from edgedm.passes.merge_tables import MergeTables
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


@dataclass(frozen=True)
class Fault:
    """A change of one constant that spoils the work of a pass on a tiny model, and what `verify` says of it."""

    method: str
    by: type[GraphPass]
    op: str  # of a node that reads the constant
    constant: str
    change: Callable[[np.ndarray], np.ndarray]
    first: str  # row of level step
    told: str  # of what the pass changed


FAULTS = [
    Fault("w4a4", FuseEpilogue, "QuantConv", f"{LAYER}.step", lambda each: 1.5 * each, "eps, step 0", "output 'eps'"),
    Fault(
        "binarydm",
        FuseBinaryWeightConv,
        "BinaryWeightConv",
        f"{LAYER}.bits.multiplier",
        lambda each: 1.5 * each,
        "eps, step 0",
        "'conv2d_10'",
    ),
    Fault(  # of no consequence until there is a state to mix with
        "bidm",
        MergeTables,
        "Gather",
        "cache_coefficients",
        lambda rows: np.roll(rows, 1, axis=0),
        "eps, step 1",
        "output 'eps'",
    ),
]


@pytest.fixture
def careless(deployed, tmp_path, monkeypatch):
    """Fault -> a graph that a pipeline with this fault made; the graphs between its passes are in `chain`."""

    def make(fault: Fault) -> Path:
        class Careless(fault.by):
            def call(self, model: ir.Model):
                report = super().call(model)
                found = [node for node in model.graph if node.op_type == fault.op]
                value = next(each for node in found for each in node.inputs if each and each.name == fault.constant)
                before = value.const_value.numpy()
                value.const_value = ir.tensor(fault.change(before).astype(before.dtype), name=value.name)
                return report

            @property
            def name(self) -> str:
                return fault.by.__name__

        exported = deployed(fault.method).with_name("model.onnx")  # by the right pipeline
        passes = [
            (lambda _: Careless()) if isinstance(each(pipeline.Schedule()), fault.by) else each
            for each in pipeline.PIPELINE
        ]
        monkeypatch.setattr(pipeline, "PIPELINE", passes)
        monkeypatch.setattr(bisect, "PIPELINE", passes)
        optimize(exported, tmp_path / "deploy.onnx", dump=tmp_path / "chain", steps=4)
        return tmp_path

    return make


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.method}-{fault.by.__name__}")
def test_the_pass_that_broke_parity_is_named_with_what_it_changed(careless, fault) -> None:
    folder, asked = careless(fault), {"levels": ("step",), "steps": 4}
    outcome = verify(folder / "deploy.onnx", tiny.checkpoint(fault.method), **asked)
    assert not outcome.ok
    failure, name = outcome.details["first_failure"], fault.by.__name__
    assert failure["where"].startswith(fault.first)
    assert failure["introduced_by"].startswith(f"pass {name}: {name} changed the model: {fault.told}")


@pytest.mark.slow
def test_a_dumped_chain_names_the_pass_of_a_graph_and_a_bundle_without_another_export(careless, monkeypatch) -> None:
    fault = FAULTS[-1]
    folder = careless(fault)
    monkeypatch.setattr(bisect, "export", None)
    asked = {"levels": ("step",), "steps": 4, "chain": folder / "chain"}
    for artifact in (folder / "deploy.onnx", tiny.bundle(folder / "deploy.onnx")):
        outcome = verify(artifact, tiny.checkpoint(fault.method), **asked)
        failure = outcome.details["first_failure"]
        assert failure["where"].startswith(fault.first)
        assert failure["introduced_by"] == f"pass {fault.by.__name__}"


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
