"""EfficientDM's data-free distillation along the full-precision trajectory (arXiv 2310.03270)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import UnsupportedError
from edgedm.models.denoiser import Denoiser
from edgedm.quant.methods.efficientdm import EfficientDMOptions, QALoRALayer, TimestepTable
from edgedm.training.objective import Frozen, Losses, Objective
from edgedm.training.trajectory import Samples, Steps, predictor

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]

SMALLEST_LOSS = 1e-6  # mean squared error below which a balanced step stops gaining weight: of float32 against itself


class TrajectoryDistillation(Objective):
    """sum over N, C, H, W of (output_q - output_fp)^2 at x_t, one optimiser step a denoising step.

    With `options.balance` the sum is divided by its mean, a constant for the gradient. The error of the last steps is
    hundreds of times that of the first ones, whose x_t is nearly the noise itself, so without it AdamW's second moment,
    which a parameter shares over all timesteps, leaves the first steps next to no rate; but the first steps decide
    what is drawn.

    x_T is drawn from N(0, I) and advanced by the teacher's output (DDIM with `options.eta`), so no data is needed
    and the student's errors don't lead the trajectory astray. A trajectory has one random class a image, a share
    `label_dropout` of them the null class. Where it stands is kept in the buffers `x` f32[N, C, H, W], `labels`
    int64[N] and `step` int64[]. Without classes (`null_class` None) the labels are zeros that nobody reads.

    Trained are A, B and step of the `QALoRALayer`s and the rows of the `TimestepTable`s; the constructor freezes
    everything else. Only the current timestep's row has a gradient; AdamW's momentum, as in the release, carries
    a row on for some steps after its own.
    """

    def __init__(
        self,
        student: Denoiser,
        teacher: nn.Module,
        schedule: NoiseSchedule,
        shape: tuple[int, int, int],
        null_class: int | None,
        options: EfficientDMOptions,
        batch: int,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__(student)
        if null_class is None and options.guidance != 1.0:
            raise UnsupportedError(f"option guidance {options.guidance}: the model has no class labels; expected 1.0")
        self.teacher, self.walk = Frozen(teacher), Steps(schedule, options.trajectory_steps, options.eta)
        self.target = predictor(teacher, student.prompts)
        self.options, self.null_class, self.label_dropout = options, null_class, label_dropout
        device = next(student.parameters()).device
        self.register_buffer("x", torch.zeros(batch, *shape, device=device))
        self.register_buffer("labels", torch.zeros(batch, dtype=torch.int64, device=device))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.x: Tensor
        self.labels: Tensor
        self.step: Tensor
        student.requires_grad_(False)
        self.layers = {path: m for path, m in student.named_modules() if isinstance(m, QALoRALayer)}
        self.tables = [module for module in student.modules() if isinstance(module, TimestepTable)]
        for layer in self.layers.values():
            for _, parameter in layer.named_parameters(recurse=False):
                parameter.requires_grad_(True)
        for table in self.tables:
            table.step.requires_grad_(True)
            table.zero.requires_grad_(options.zero_learning)

    def forward(self, iteration: int, generator: torch.Generator) -> Losses:
        """Return the "loss" at the current step of the trajectory, and its mean "eps_mse"; advance by one step."""
        del iteration
        step = int(self.step)
        if step == 0:
            self._restart(generator)
        x = self.x
        timestep = torch.full((len(x),), self.walk.timesteps[step], device=x.device)
        with torch.no_grad():
            target = self._output(self.target, x, timestep)
            noise = torch.randn(x.shape, generator=generator).to(x.device) if self.options.eta else None
            self.x = self.walk.advance(step, x, target, noise)
            self.step.fill_((step + 1) % len(self.walk))
        error = (self._output(self.student.record, x, timestep).float() - target).square()
        size = error.detach().mean()
        weight = size.clamp(min=SMALLEST_LOSS).reciprocal() if self.options.balance else 1.0
        return {"loss": weight * error.sum(), "eps_mse": size}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return one group a layer's update, one of the weight steps, one of the activation rows.

        `learning_rate` multiplies the rates of the options. Scale-aware: an update's rate is
        mean(step) / `lora_divisor`. The paper multiplies the gradient instead, which AdamW would not notice.
        """
        options = self.options
        scales = {path: float(layer.step.detach().mean()) for path, layer in self.layers.items()}
        common = sum(scales.values()) / max(1, len(scales))
        groups: list[dict[str, Any]] = []
        for path, layer in self.layers.items():
            if layer.rank:
                scale = scales[path] if options.scale_aware else common
                groups.append({"params": [layer.lora_a, layer.lora_b], "lr": scale / options.lora_divisor})
        groups.append({"params": [layer.step for layer in self.layers.values()], "lr": options.step_rate})
        rows = [p for table in self.tables for p in (table.step, table.zero) if p.requires_grad]
        groups.append({"params": rows, "lr": options.activation_rate})
        return [{**group, "lr": learning_rate * group["lr"]} for group in groups if group["params"]]

    def _restart(self, generator: torch.Generator) -> None:
        """Start a new trajectory."""
        x = torch.randn(self.x.shape, generator=generator)
        labels = random_labels(len(x), self.null_class, generator, self.label_dropout)
        self.x, self.labels = x.to(self.x.device), labels.to(self.labels.device)

    def _output(self, predict: Predict, x: Tensor, timestep: Tensor) -> Tensor:
        """Return the guided output; with guidance both halves are one call, so that the clock ticks once."""
        scale = self.options.guidance
        if scale == 1.0 or self.null_class is None:
            return predict(x, timestep, self.labels)
        free = torch.full_like(self.labels, self.null_class)
        both = predict(torch.cat([x, x]), torch.cat([timestep, timestep]), torch.cat([self.labels, free]))
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)


def random_labels(count: int, null_class: int | None, generator: torch.Generator, dropout: float = 0.0) -> Tensor:
    """Return int64[count] of 0 .. null_class - 1, a share `dropout` replaced by `null_class`; zeros if it is None."""
    if null_class is None:
        return torch.zeros(count, dtype=torch.int64)
    labels = torch.randint(max(1, null_class), (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < dropout, null_class, labels)


@torch.no_grad()
def eps_mse(student: Denoiser, teacher: nn.Module, samples: Samples, batch: int = 50) -> float:
    """Return the mean squared difference of the outputs of student and teacher over `samples`.

    Both are on one device. The samples are taken in groups of one timestep, as the layers that run need it.
    """
    was_training, device = student.training, next(student.parameters()).device
    student.eval()
    predict, total = predictor(teacher, student.prompts), 0.0
    for timestep in sorted(set(samples.timesteps.tolist())):
        group = samples.take((samples.timesteps == timestep).nonzero()[:, 0])
        for start in range(0, len(group), batch):
            part = group.take(slice(start, start + batch))
            inputs = (part.noisy.to(device), part.timesteps.to(device), part.labels.to(device))
            total += float((student.record(*inputs) - predict(*inputs)).double().square().sum())
    student.train(was_training)
    return total / samples.noisy.numel()


def weight_codes(model: nn.Module) -> dict[str, Tensor]:
    """Return {path: uint8 codes in the weight's shape} of every `QALoRALayer` in `model`."""
    return {path: m.codes().to(torch.uint8) for path, m in model.named_modules() if isinstance(m, QALoRALayer)}


def changed_codes(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Return the share of integer weights that differ, layer by layer (the paper's figure 3c)."""
    return {path: float((codes != after[path]).float().mean()) for path, codes in before.items()}
