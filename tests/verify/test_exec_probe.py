"""Verification through the probe executable: on this machine's own bundle it finds what it finds in the library."""

import json

import faults
import numpy as np
import pytest
import tiny

from edgedm.bundle import Manifest
from edgedm.verify import main, probe, verify


def _without_time(outcome) -> str:
    figures = {name: value for name, value in outcome.figures.items() if "seconds" not in name}
    return json.dumps([outcome.ok, figures, outcome.details.get("first_failure")], sort_keys=True)


@pytest.mark.slow
def test_it_finds_the_same_in_every_kernel_and_layer(bundle, monkeypatch):
    levels = {"levels": ("op", "layer"), "steps": 10, "timesteps": 2}
    loaded = verify(bundle("bidm"), tiny.checkpoint("bidm"), **levels)
    monkeypatch.setattr(main, "open_probe", probe.ExecProbe)
    piped = verify(bundle("bidm"), tiny.checkpoint("bidm"), **levels)
    assert piped.ok
    assert piped.figures["op.accumulators"] > 0
    assert _without_time(piped) == _without_time(loaded)


def test_it_finds_a_changed_constant(bundle, tmp_path, monkeypatch):
    def turn_one_sign(weights: np.ndarray, manifest: Manifest) -> None:
        node = next(each for each in manifest.nodes if each.op == "BinaryConv")
        constant = next(each for each in node.inputs if each.source == "weights" and each.dtype == "uint64")
        weights[constant.offset] ^= 1

    broken = faults.copy(bundle("bidm"), tmp_path / "broken.bundle")
    faults.change_weights(broken, turn_one_sign)
    monkeypatch.setattr(main, "open_probe", probe.ExecProbe)
    outcome = verify(broken, tiny.checkpoint("bidm"), levels=("op",))
    assert not outcome.ok
    assert "BinaryConv" in str(outcome.details["first_failure"])
