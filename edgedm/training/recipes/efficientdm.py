"""EfficientDM (arXiv 2310.03270): calibrate on the full-precision trajectory, then distil along it; data-free."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgedm.models.denoiser import Denoiser
from edgedm.quant.api import make_inference
from edgedm.quant.methods.efficientdm import EfficientDMOptions
from edgedm.training.calibrate import calibrate
from edgedm.training.efficientdm import TrajectoryDistillation, changed_codes, eps_mse, random_labels, weight_codes
from edgedm.training.objective import Recipe, Run, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.trajectory import Samples, calibration_samples, predictor

CALIBRATION = 32  # (x_t, t, class) triples, as released
TRAJECTORIES = 4  # that they are drawn from, of random classes; of prompts, one is the negative one's
STEPS = 50  # of them, and of those that the figures are measured on


def stages(run: Run) -> Iterator[Stage]:
    """Calibrate every activation table on one small batch, the same for all rows; train; measure the merge.

    Figures, all mean squared errors of the student's output to the teacher's on trajectories of their own:
    `calibrated.eps_mse` before training, `merge.eps_mse_before` after it, `merge.eps_mse_after` with the update
    merged into integers and zero points rounded. `codes.changed` is the mean over layers of the share of integer
    weights that training changed, `codes.untouched` the share of layers without any.
    """
    options, student = run.options, run.student
    assert isinstance(options, EfficientDMOptions)
    student.eval()
    generator = torch.Generator().manual_seed(run.loop.seed)
    seen = _trajectories(run, options, run.loop.seed)
    calibrate(student, seen.take(torch.randperm(len(seen), generator=generator)[:CALIBRATION]))
    held, before = _trajectories(run, options, run.loop.seed + 1), weight_codes(student)
    run.figures["calibrated.eps_mse"] = eps_mse(student, run.teacher, held)
    yield Stage(
        "efficientdm",
        TrajectoryDistillation(
            student,
            run.teacher,
            run.schedule,
            run.shape,
            run.null_class,
            options,
            run.loop.batch,
            run.loop.label_dropout,
        ),
        run.loop,
    )
    trained = run.trained
    assert trained is not None
    run.figures["merge.eps_mse_before"] = eps_mse(trained, run.teacher, held)
    run.figures["merge.eps_mse_after"] = eps_mse(_merged(trained), run.teacher, held)
    changed = list(changed_codes(before, weight_codes(trained)).values())
    run.figures["codes.changed"] = sum(changed) / max(1, len(changed))
    run.figures["codes.untouched"] = changed.count(0.0) / max(1, len(changed))


def _trajectories(run: Run, options: EfficientDMOptions, seed: int) -> Samples:
    labels = random_labels(TRAJECTORIES, run.null_class, torch.Generator().manual_seed(seed))
    if run.student.prompts is not None:  # keys are made of a prompt alone: none of the others has the range of zeros
        assert run.null_class is not None
        labels[0] = run.null_class
    teacher, device = predictor(run.teacher, run.student.prompts), run.device

    def predict(x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        return teacher(x.to(device), timesteps.to(device), labels.to(device)).cpu()

    return calibration_samples(predict, run.schedule, run.shape, labels, STEPS, eta=options.eta, seed=seed)


def _merged(trained: Denoiser) -> Denoiser:
    unet: nn.Module = copy.deepcopy(trained.unet)
    make_inference(unet)
    return Denoiser(unet, prompts=trained.prompts)


# The release trains 160 trajectories of 100 steps, batch 4. The learning rate is a factor of the options' rates.
RECIPE = Recipe(
    LoopOptions(
        2000,
        1.0,
        batch=16,
        warm_up=0,
        decay="linear",
        ema_decay=0.0,
        weight_decay=0.01,
        clip_norm=1e9,  # none, as released
    ),
    stages,
    data_free=True,
)
