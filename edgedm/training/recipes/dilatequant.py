"""DilateQuant (arXiv 2409.14307): dilate the weights in closed form, then block-wise distillation, data-free.

Every block is a stage with its own resumable state; `iterations` are those of one block, as the paper's 5000 are
taken to be. Inputs x_t come from sampling with the full-precision model, at one timestep a bin or more, so every
row of the tables has samples of its own. `learning_rate` multiplies the rates of the options.
"""

from collections.abc import Iterator
from dataclasses import asdict

from torch import Tensor

from edgedm.quant.dilation import dilate, measure_ranges
from edgedm.quant.methods.dilatequant import DilateQuantOptions
from edgedm.training.blockwise import CALIBRATED, BlockReconstruction, Rates, blocks_of
from edgedm.training.calibrate import calibrate
from edgedm.training.objective import Recipe, Run, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.trajectory import Samples, calibration_labels, calibration_samples, predictor

STEPS = 50  # of the sampling that data come from, where the table has fewer rows
MEASURED = 64  # samples that activation ranges are measured on


def stages(run: Run) -> Iterator[Stage]:
    """Dilate, calibrate, then yield one stage a block; without BKD, or iterations, none.

    Figures, means over layers: `dilation.share` of the input channels lies outside A, `dilation.mean` is s and
    `dilation.range_ratio` what the range of the activations became, of those that are not constant; see
    `edgedm.quant.dilation.Dilated`.
    """
    options = run.options
    assert isinstance(options, DilateQuantOptions)
    samples = samples_of(run, options)
    if options.dilate:
        _dilate(run, options, samples)
    texts = run.student.prompts is not None
    calibrate(run.student, samples.take(samples.spread(CALIBRATED, turn=texts)), per_row=options.tpq)
    if not options.bkd or run.loop.iterations == 0:
        return
    few = samples.take(slice(0, 1))
    paths = blocks_of(run.student.unet, lambda: _call(run, few))
    rates = Rates(options.weight_rate, options.quantizer_rate)
    for index, path in enumerate(paths):
        objective = BlockReconstruction(run.student, run.teacher, path, samples, rates, run.loop.batch, options.cache)
        yield Stage(f"{index:03}-{path}", objective, run.loop)


def samples_of(run: Run, options: DilateQuantOptions) -> Samples:
    """Return what a denoiser meets on the full-precision model's trajectories, of classes and of none.

    Not more of it than a stage can draw.
    """
    steps = max(STEPS, options.bins if options.tpq else 1)
    drawn = max(run.loop.iterations * run.loop.batch, CALIBRATED)
    images = -(-min(options.calibration_samples, drawn) // steps)
    labels = calibration_labels(images, run.null_class, prompts=run.student.prompts is not None)
    return calibration_samples(
        predictor(run.teacher, run.student.prompts), run.schedule, run.shape, labels, steps, seed=run.loop.seed
    )


def _dilate(run: Run, options: DilateQuantOptions, samples: Samples) -> None:
    done = dilate(run.student.unet, options.dilation_cap)
    some = samples.take(samples.spread(MEASURED, turn=run.student.prompts is not None))
    reports = [asdict(each) for each in measure_ranges(run.student.unet, done, lambda: _call(run, some)).values()]
    for name in ("share", "mean", "range_ratio"):
        values = [report[name] for report in reports if report[name] is not None]
        if values:
            run.figures[f"dilation.{name}"] = sum(values) / len(values)


def _call(run: Run, samples: Samples) -> Tensor:
    device = run.device
    return run.student.record(samples.noisy.to(device), samples.timesteps.to(device), samples.labels.to(device))


# the learning rate is a factor: see above
RECIPE = Recipe(LoopOptions(500, 1.0, warm_up=20, ema_decay=0.0, save_every=500), stages, data_free=True)
