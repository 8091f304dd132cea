"""Samples of kernels and layers: every kind first, spread, and in turn over the moments."""

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from edgedm.errors import UnsupportedError
from edgedm.verify import verify
from edgedm.verify.sampling import deal, in_order
from edgedm.verify.torch_reference import TorchReference


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 60))
def test_a_beginning_has_every_kind_and_nothing_is_lost(kinds, count) -> None:
    items = list(enumerate(kinds))
    ordered = in_order(items, lambda item: item[1])
    assert sorted(ordered) == items
    beginning = {kind for _, kind in ordered[:count]}
    assert len(beginning) == min(count, len(set(kinds)), len(kinds))


def test_a_kind_is_taken_from_end_to_end() -> None:
    assert in_order(list(range(8)), lambda _: 0) == [0, 4, 2, 6, 1, 5, 3, 7]


def test_moments_take_other_items_until_all_were_taken() -> None:
    dealt = deal(list(range(10)), lambda _: 0, 4, 3)
    assert [len(each) for each in dealt] == [3] * 4
    assert {item for each in dealt for item in each} == set(range(10))
    assert deal([1, 2], lambda _: 0, 2, None) == deal([1, 2], lambda _: 0, 2, 5) == [[1, 2], [1, 2]]


def test_a_sample_of_a_bundle_holds_and_says_what_it_left_out(bundle) -> None:
    outcome = verify(bundle("bidm"), tiny.checkpoint("bidm"), levels=("op", "layer"), steps=10, timesteps=2, sample=5)
    assert outcome.ok, outcome.details["first_failure"]
    figures = outcome.figures
    assert figures["op.kernels"] == 5 and figures["op.left_out"] > 0
    assert 0 < figures["layer.rows"] <= 20 and figures["layer.left_out"] > 0


def test_level_layer_alone_needs_no_float64_of_torch(bundle, monkeypatch) -> None:
    forward, widths = TorchReference._forward, []
    monkeypatch.setattr(
        TorchReference, "_forward", lambda self, bits, *rest: widths.append(bits) or forward(self, bits, *rest)
    )
    assert verify(bundle("bidm"), tiny.checkpoint("bidm"), levels=("layer",), steps=10, timesteps=4).ok
    assert widths == [32] * 3  # from each of four moments to the next


def test_moments_stand_at_the_schedules_own_timesteps_and_carry_state() -> None:
    reference = TorchReference(tiny.checkpoint("bidm"))
    moments = reference.visit([0, 1], [(0, 0), (0, 1)], 10, [0, 4, 9])
    assert [each.timestep for each in moments] == [900, 500, 0]
    assert [each.has_state for each in moments] == [False, True, True]
    whole = reference.sample(32, [0, 1], [(0, 0), (0, 1)], 10, "ddim", keep=[0])
    assert np.array_equal(moments[0].x, whole.moments[0].x)
    assert all(np.isfinite(each.x).all() and each.x.dtype == np.float32 for each in moments)
    neighbours = reference.visit([0], [(0, 0)], 10, [0, 1])
    free = reference.sample(32, [0], [(0, 0)], 10, "ddim", keep=[1])
    assert np.allclose(neighbours[1].x, free.moments[0].x, rtol=1e-6, atol=1e-6)  # a leap of one step is DDIM's own


def test_nothing_to_look_at_is_refused(bundle) -> None:
    for wrong in ({"timesteps": 0}, {"sample": 0}):
        with pytest.raises(UnsupportedError, match="expected at least 1"):
            verify(bundle("bidm"), tiny.checkpoint("bidm"), levels=("op",), **wrong)


@pytest.mark.slow
def test_shortcuts_of_one_bit_hold_at_every_kernel_and_layer(bundle) -> None:
    outcome = verify(bundle("bidm/binary"), tiny.checkpoint("bidm/binary"), levels=("op", "layer"), steps=10)
    assert outcome.ok, outcome.details["first_failure"]
    assert outcome.figures["layer.low_bit_layers"] > 15


def test_a_graph_is_sampled_too(deployed) -> None:
    outcome = verify(deployed("w4a4"), tiny.checkpoint("w4a4"), levels=("layer",), steps=10, timesteps=2, sample=3)
    assert outcome.ok, outcome.details["first_failure"]
    assert outcome.figures["layer.left_out"] > 0
