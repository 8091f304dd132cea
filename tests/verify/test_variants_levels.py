"""Each variant of a bundle is held against the checkpoint by its own kernels."""

import pytest
import tiny

from edgedm.bundle import load
from edgedm.errors import UnsupportedError
from edgedm.lower import compile as compile_graph
from edgedm.targets import resolve, runs_natively
from edgedm.verify import verify

pytestmark = pytest.mark.slow

VARIANTS = ("x86-64-v3", "x86-64-v2")


@pytest.fixture(scope="module")
def both(deployed, tmp_path_factory):
    assert all(runs_natively(resolve(name)) for name in VARIANTS)
    path = tmp_path_factory.mktemp("variants") / "both.bundle"
    compile_graph(deployed("bidm"), path, target=VARIANTS, steps=10)
    return path


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_that_is_named_holds(both, name):
    outcome = verify(both, tiny.checkpoint("bidm"), levels=("op", "layer"), steps=10, timesteps=2, variant=name)
    assert outcome.ok, outcome.details["first_failure"]
    kernels = {node.kernel for node in load(both).manifest.of(name).nodes if node.node}
    assert outcome.figures["op.kernels"] == len(kernels)
    assert outcome.figures["layer.accumulators"] > 15


def test_a_variant_that_is_not_there_is_refused(both, deployed):
    with pytest.raises(UnsupportedError, match=r"'cortex-a53': the bundle has x86-64-v3, x86-64-v2"):
        verify(both, tiny.checkpoint("bidm"), variant="cortex-a53")
    with pytest.raises(UnsupportedError, match="is a graph"):
        verify(deployed("bidm"), tiny.checkpoint("bidm"), variant="x86-64-v3")
