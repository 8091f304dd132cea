"""Levels that run whole steps and draw images, on a bundle of another machine."""

import elsewhere
import pytest
import tiny
from test_distribution_level import network

from edgedm.lower import compile as compile_graph
from edgedm.verify import LEVELS, verify

pytestmark = pytest.mark.slow

STEPS = 2


@pytest.mark.parametrize("target", ["aarch64+dotprod", "wasm32+simd128"])
def test_all_six_levels_hold_there(deployed, tmp_path, target) -> None:
    elsewhere.need_machine(target)
    compile_graph(deployed("bidm"), tmp_path / "model.bundle", target=target, steps=STEPS)
    features, _ = network(tmp_path / "net.onnx")
    (tmp_path / "gate.toml").write_text("timesteps = 1\n[distribution]\nsamples = 16\nchance = 0.01\n")
    asked = {"gate": tmp_path / "gate.toml", "features": features, "steps": STEPS}
    outcome = verify(tmp_path / "model.bundle", tiny.checkpoint("bidm"), **asked)
    assert outcome.ok, outcome.details.get("first_failure")
    assert [level["name"] for level in outcome.details["levels"]] == list(LEVELS)
