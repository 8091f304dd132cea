"""A sampler that the artefact refuses is a row that fails, unless the checkpoint's own schedule refuses it."""

from types import SimpleNamespace

from edgedm.diffusion import SAMPLERS, NoiseSchedule, normals
from edgedm.errors import UnsupportedError
from edgedm.verify.sampler_rows import STEPS, sampler_rows


class Refusing:
    """A runner that draws the right noise and refuses every schedule."""

    normals = staticmethod(normals)

    def prepare(self, steps: int, sampler: str, **_: object) -> None:
        raise UnsupportedError(f"no {sampler} of {steps} steps here")


def reference(timesteps: int) -> SimpleNamespace:
    """A checkpoint of so many trained timesteps, as far as the rows look at it."""
    return SimpleNamespace(null_class=0, shape=(1, 4, 4), schedule=NoiseSchedule(num_train_timesteps=timesteps))


def test_a_sampler_that_is_wrongly_refused_fails_its_row() -> None:
    rows = {row.name: row for row in sampler_rows(Refusing(), Refusing(), reference(100))}
    for sampler in SAMPLERS:
        row = rows[f"edm_sample, {sampler}"]
        assert not row.ok and f"no {sampler} of {STEPS} steps here" in row.note


def test_a_schedule_that_the_checkpoint_refuses_has_no_row() -> None:
    rows = sampler_rows(Refusing(), Refusing(), reference(STEPS - 1))
    assert [row.name for row in rows] == ["noise"] and rows[0].ok
