"""What an importer is to `import_checkpoint`: options, and a function from a file's content to a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field

from edgedm.errors import UnsupportedError
from edgedm.models.checkpoint import Checkpoint
from edgedm.models.config import Architecture, CheckpointConfig
from edgedm.models.importers import noise
from edgedm.models.importers.containers import Weights
from edgedm.models.importers.ddim_unet import DDIMOptions, ddim_naming
from edgedm.models.importers.naming import Naming
from edgedm.models.importers.noise import NoiseOptions
from edgedm.models.importers.openai_unet import OpenAIOptions, openai_naming
from edgedm.models.importers.tensors import Tensors

WEIGHTS = "the averaged copy, or the raw ones"
NO_AVERAGE = "the files have no averaged copy"


class LDMOptions(OpenAIOptions, NoiseOptions):
    """Options of every layout with CompVis' names."""

    weights: Weights = Field("ema", description=WEIGHTS)
    null_class: int | None = Field(None, description="the label that means none, of a model with label_emb")


class CifarOptions(DDIMOptions, NoiseOptions):
    """Options of every layout with ddim's names."""

    weights: Weights = Field("ema", description=WEIGHTS)


@dataclass
class Report:
    """What the user should know of an import besides its result."""

    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def say(self, note: str) -> None:
        """Add a note, once."""
        if note not in self.notes:
            self.notes.append(note)

    def largest(self, name: str, value: float) -> None:
        """Keep the largest value of a figure."""
        self.figures[name] = max(self.figures.get(name, 0.0), value)

    def count(self, name: str, value: float) -> None:
        """Add to a figure."""
        self.figures[name] = self.figures.get(name, 0.0) + value


@dataclass(frozen=True)
class Layout:
    """One layout: `build` gets the file's content, its name, the options (of class `options`) and a report."""

    name: str
    title: str
    options: type[BaseModel]
    build: Callable[[Any, str, Any, Report], Checkpoint]


def name_modules(tensors: Tensors, options: LDMOptions | CifarOptions) -> Naming:
    """Return the naming that belongs to the options' class."""
    if isinstance(options, LDMOptions):
        return openai_naming(tensors, options)
    return ddim_naming(tensors, options)


def make_config(
    tensors: Tensors,
    naming: Naming,
    settings: LDMOptions | CifarOptions,
    report: Report,
    method: str,
    /,
    **changes: Any,
) -> CheckpointConfig:
    """Return the config of a checkpoint; `changes` are roles, options, taps, timestep_bins.

    Raises `UnsupportedError` for bins in a noise schedule of another length; the report says which betas are assumed.
    """
    default = noise.LATENT_DIFFUSION if isinstance(settings, LDMOptions) else noise.DDIM
    schedule = noise.noise_schedule(tensors, settings, default)
    if changes.get("timestep_bins") and schedule["num_train_timesteps"] != noise.TIMESTEPS:
        raise UnsupportedError(
            f"{tensors.file}: tables a timestep are read for {noise.TIMESTEPS} timesteps, but the stored betas are "
            f"{schedule['num_train_timesteps']}"
        )
    assumed = [name for name in noise.NoiseOptions.model_fields if getattr(settings, name) is None]
    if "betas" not in tensors and assumed:
        said = ", ".join(f"{name}={schedule[name]}" for name in assumed)
        report.say(f"betas: the file has none; assumed {said}, which are options")
    return CheckpointConfig.model_validate(
        {
            "architecture": Architecture(class_name="UNet2DModel", config=naming.architecture),
            "method": method,
            "noise_schedule": schedule,
            "null_class": _null_class(tensors, naming, settings),
            **changes,
        }
    )


def _null_class(tensors: Tensors, naming: Naming, options: LDMOptions | CifarOptions) -> int | None:
    classes: Any = naming.architecture.get("num_class_embeds")
    null = options.null_class if isinstance(options, LDMOptions) else None
    if classes is None and null is not None:
        raise UnsupportedError(f"{tensors.file}: option null_class={null}, but the model takes no labels")
    if classes is not None and (null is None or not 0 <= null < classes):
        raise UnsupportedError(
            f"{tensors.file}: the model takes labels 0..{classes - 1}; say which one means none: null_class="
        )
    return null
