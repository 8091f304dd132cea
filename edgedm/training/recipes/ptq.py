"""Plain post-training quantisation: calibrate on full-precision trajectories, train nothing."""

from collections.abc import Iterator

from edgedm.quant.methods.ptq import PTQOptions
from edgedm.training.calibrate import calibrate
from edgedm.training.objective import Recipe, Run, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.trajectory import calibration_labels, calibration_samples, predictor


def stages(run: Run) -> Iterator[Stage]:
    """Calibrate; there is no stage."""
    options = run.options
    assert isinstance(options, PTQOptions)
    labels = calibration_labels(options.images, run.null_class, prompts=run.student.prompts is not None)
    samples = calibration_samples(
        predictor(run.teacher, run.student.prompts), run.schedule, run.shape, labels, options.steps, seed=run.loop.seed
    )
    calibrate(run.student, samples)
    yield from ()


RECIPE = Recipe(LoopOptions(0, 0.0, ema_decay=0.0), stages, data_free=True)
