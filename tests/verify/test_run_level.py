"""The sign test: chance passes, faults do not."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from edgedm.diffusion import NoiseSchedule, trajectory
from edgedm.verify.report import Level, Row
from edgedm.verify.request import CHANCE
from edgedm.verify.run_level import (
    SEED,
    VISITED,
    Runs,
    sign_test,
    step_level,
    trajectory_level,
    visit_moments,
    without_coins,
)
from edgedm.verify.torch_reference import Moment, Trajectories


def lognormal(rng: np.random.Generator, runs: int, scale: float = 1e-3) -> list[float]:
    return (scale * np.exp(rng.standard_normal(runs))).tolist()


def test_equally_precise_implementations_pass_almost_always() -> None:
    rng = np.random.default_rng(0)
    failed = sum(sign_test(lognormal(rng, 10), lognormal(rng, 10))[2] < CHANCE for _ in range(2000))
    assert failed <= 2000 * CHANCE


def test_a_flip_in_a_few_runs_is_chance() -> None:
    ratio, above, chance = sign_test([1e-7] * 7 + [0.1] * 3, [1e-7] * 10)
    assert (ratio, above) == (1.0, 3)
    assert chance > CHANCE


def test_a_fault_in_every_run_is_none() -> None:
    ratio, above, chance = sign_test([0.01] * 10, [1e-7] * 10)
    assert (ratio, above) == (1e4, 10)
    assert chance < CHANCE


def test_a_fault_shows_beside_flips_of_torch_itself() -> None:
    rng = np.random.default_rng(1)
    assert sign_test(lognormal(rng, 80, 0.05), lognormal(rng, 80, 0.005))[2] < CHANCE


def test_errors_below_the_floor_are_not_told_apart() -> None:
    assert sign_test([9e-7] * 10, [1e-9] * 10) == (1.0, 0, 1.0)


def test_infinity_counts_as_above() -> None:
    assert sign_test([math.inf] * 10, [1e-3] * 10)[1] == 10


def level(failed: dict[int, float]) -> Level:
    """Twenty steps at timesteps 0, 10, ...; those in `failed` are off, with that worst error."""
    rows = [
        Row(f"eps, step {19 - i} (timestep {10 * i})", 10 * i not in failed, {"worst": failed.get(10 * i, 1e-7)}, "off")
        for i in range(20)
    ]
    return Level("step", "", tuple(rows))


TIMESTEPS = {f"(timestep {10 * i})": 10 * i for i in range(20)}


def failures(judged: Level) -> list[str]:
    return [row.name for row in judged.rows if not row.ok]


def test_one_code_of_the_timestep_decides_for_all_runs_and_is_no_fault() -> None:
    judged = without_coins(level({30: 0.02}), TIMESTEPS, lambda timestep: timestep == 30)
    assert not failures(judged) and judged.figures["undecided"] == 1


def test_a_fault_at_a_decided_timestep_stays_one() -> None:
    judged = without_coins(level({30: 0.02, 130: 0.02}), TIMESTEPS, lambda timestep: timestep == 30)
    assert failures(judged) == ["eps, step 6 (timestep 130)"]


def test_many_undecided_timesteps_excuse_nothing_beyond_a_tenth() -> None:
    judged = without_coins(level({10 * i: 0.02 for i in range(5)}), TIMESTEPS, lambda _: True)
    assert len(failures(judged)) == 3


def test_rows_of_labels_make_no_room_for_more_undecided_timesteps() -> None:
    off = level({10 * i: 0.02 for i in range(5)})
    labelled = Level("step", "", (*off.rows, *(Row(f"eps, label {label}", True) for label in range(200))))
    assert len(failures(without_coins(labelled, TIMESTEPS, lambda _: True))) == 3


@pytest.mark.parametrize("worst", [math.nan, math.inf, 1e6, 0.2])
def test_more_than_one_code_explains_is_never_excused(worst) -> None:
    assert failures(without_coins(level({30: worst}), TIMESTEPS, lambda _: True))


def test_a_model_of_many_labels_takes_few_trajectories_through_the_visited_steps() -> None:
    asked: list[list[int]] = []

    def visit(labels, noise, _steps, chosen) -> list[int]:
        asked.append(list(labels))
        assert len(noise) == len(labels)
        return list(chosen)

    moments, images = visit_moments(SimpleNamespace(null_class=1000, visit=visit), 50, 50)
    assert asked == [[1000, 0, 1, 2]] and len(moments) == len(images) == 50
    assert images[: VISITED + 1] == [0, 1, 2, 3, 0]
    visit_moments(SimpleNamespace(null_class=0, visit=visit), 50, 50)
    assert asked[1] == [0]


class Exact:
    """A reference whose float32 is a hair off, and a runner that takes one label for another."""

    null_class = 4

    def __init__(self, mistaken: int | None) -> None:
        self.mistaken = mistaken

    def predict(self, bits: int, moment: Moment):
        return self._of(moment.x, moment.labels) * (1 if bits == 64 else 1 + 1e-6), []

    def step(self, timestep: int, x, label: int | None = None, state=None):
        label = self.null_class if label is None else label
        read = 0 if label == self.mistaken else label
        return self._of(x[None], np.array([read]))[0] * (1 + 1.5e-6), {}

    def _of(self, x, labels):
        return x.astype(np.float64) * (1 + labels[:, None, None, None])


def label_run(mistaken: int | None, steps: int, texts: np.ndarray | None = None) -> Level:
    rng, labels = np.random.default_rng(0), [(image + 4) % 5 for image in range(10)]
    moments = [
        Moment(step, 100 - step, np.array(labels), x, (), False, texts)
        for step in range(steps)
        for x in [rng.standard_normal((10, 1, 2, 2)).astype(np.float32)]
    ]
    subject = Exact(mistaken)
    return step_level(subject, [], subject, Runs(labels, Trajectories([], moments), Trajectories([], [])))


def test_a_fault_of_one_label_is_not_outvoted_by_the_others() -> None:
    assert label_run(None, 10).ok
    assert failures(label_run(3, 10)) == ["eps, label 3"]


def test_a_label_with_too_few_runs_for_the_sign_test_has_no_row() -> None:
    assert [row.name for row in label_run(3, 4).rows] == [f"eps, step {n} (timestep {100 - n})" for n in range(4)]
    assert sum(row.name.startswith("eps, label") for row in label_run(None, 5).rows) == 5


def test_labels_without_a_row_are_counted() -> None:
    assert label_run(None, 4).figures["labels.untested"] == 5
    assert label_run(None, 5).figures["labels.untested"] == 0


def test_a_text_has_no_row_since_one_coin_in_it_would_decide_all_its_runs() -> None:
    """Keys and values of cross-attention are the same in all runs of a text; here they round apart in one text."""
    read = label_run(3, 10, np.zeros((10, 2, 4), np.float32))
    assert read.ok and not [row for row in read.rows if row.name.startswith("eps, label")]
    assert read.figures["labels.untested"] == 5


def test_images_of_a_latent_model_are_decoded_before_they_are_held_against_each_other() -> None:
    schedule, shape, steps = NoiseSchedule(num_train_timesteps=1000), (1, 2, 2), 3
    free = SimpleNamespace(prepare=lambda *_, **__: None, run_step=lambda _step, x: 0 * x)
    way = list(trajectory(lambda x, _t, _step: 0 * x, schedule, shape, steps, "ddim", 0.0, SEED, 0))
    runs = Trajectories([np.stack([x] * 10).astype(np.float64) for x in way], [])
    reference = SimpleNamespace(
        null_class=0, schedule=schedule, shape=shape, decode=lambda bits, latent: np.zeros((3, 4, 4))
    )

    def figures(decode) -> float:
        same = Runs([0] * 10, runs, runs)
        level = trajectory_level(free, reference, same, steps, "ddim", decode=decode)
        return level.figures["psnr_db.median"]

    assert figures(lambda latent: np.full((3, 4, 4), 0.2)) == pytest.approx(20.0)  # 2 of span, 0.2 apart
    assert figures(lambda latent: np.full((3, 4, 4), 0.02)) == pytest.approx(40.0)
