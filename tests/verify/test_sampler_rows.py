"""A sampler that the artefact refuses is a row that fails, unless the checkpoint's own schedule refuses it."""

from types import SimpleNamespace

import numpy as np
import pytest

from edgedm.diffusion import SAMPLERS, NoiseSchedule, normals, sample, steps
from edgedm.errors import UnsupportedError
from edgedm.verify.sampler_rows import STEPS, sampler_rows


class Refusing:
    """A runner that draws the right noise and refuses every schedule."""

    normals = staticmethod(normals)

    def prepare(self, steps: int, sampler: str, **_: object) -> None:
        raise UnsupportedError(f"no {sampler} of {steps} steps here")


def reference(timesteps: int, end: str = "zero") -> SimpleNamespace:
    """A checkpoint of so many trained timesteps, as far as the rows look at it."""
    schedule = NoiseSchedule(num_train_timesteps=timesteps, final_sigmas_type=end)
    return SimpleNamespace(null_class=0, shape=(1, 4, 4), schedule=schedule)


def test_a_sampler_that_is_wrongly_refused_fails_its_row() -> None:
    rows = {row.name: row for row in sampler_rows(Refusing(), Refusing(), reference(100))}
    for sampler in SAMPLERS:
        row = rows[f"edm_sample, {sampler}"]
        assert not row.ok and f"no {sampler} of {STEPS} steps here" in row.note


def test_a_schedule_that_the_checkpoint_refuses_has_no_row() -> None:
    rows = sampler_rows(Refusing(), Refusing(), reference(STEPS - 1))
    assert [row.name for row in rows] == ["noise"] and rows[0].ok


class Drawing:
    """The sampler itself over a model whose output is its input halved; `few` is what it takes for a short schedule."""

    normals = staticmethod(normals)

    def __init__(self, schedule: NoiseSchedule, few: int) -> None:
        self.schedule, self.few, self.chosen = schedule, few, (0, "", 0.0)

    def prepare(self, steps: int, sampler: str, *, eta: float, **_: object) -> None:
        self.chosen = steps, sampler, eta

    def step(self, _timestep: int, x: np.ndarray, *_: object) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return x / 2, {}

    def sample(self, count: int, seed: int, first_image: int, start: np.ndarray | None, strength: float) -> np.ndarray:
        def predict(x: np.ndarray, _timestep: int, _step: int) -> np.ndarray:
            return x / 2

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steps, "_FEW_STEPS", self.few)
            images = [
                sample(
                    predict,
                    self.schedule,
                    (1, 4, 4),
                    *self.chosen,
                    seed=seed,
                    image=first_image + image,
                    start=None if start is None else start[image],
                    strength=strength,
                )
                for image in range(count)
            ]
        return np.stack(images)


@pytest.mark.parametrize("few", [14, 16])
def test_another_length_of_a_short_schedule_fails_a_row_where_it_tells(few: int) -> None:
    for end, expected in (("zero", set()), ("sigma_min", {f"edm_sample, dpm-solver++ of {min(few, 15)} steps"})):
        checkpoint = reference(1000, end)
        checkpoint.null_class = None
        for drawing, fails in (
            (Drawing(checkpoint.schedule, 15), set()),
            (Drawing(checkpoint.schedule, few), expected),
        ):
            rows = sampler_rows(drawing, drawing, checkpoint)
            assert {row.name for row in rows if not row.ok} == fails
