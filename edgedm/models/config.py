"""What `config.json` of a checkpoint says."""

import itertools
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from edgedm.errors import InvalidModelError, UnsupportedError, short
from edgedm.files import parse_record, read_json
from edgedm.models.bits import Bits
from edgedm.models.construct import construct, given_or_default
from edgedm.models.roles import Role

Method = Literal["fp32", "binarydm", "bidm", "efficientdm", "dilatequant", "xnor", "dorefa", "reactnet", "lsq", "ptq"]

FORMAT_VERSION = 1
MOST_TOKENS = 4096
MAX_CONFIG_BYTES = 1 << 20
MOST_BINS = 4096
MOST_TIMESTEPS = 1_000_000
MOST_PIXELS = 1 << 14  # of a side of what the network draws
MOST_CLASSES = 2**31 - 1


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Strict):
    """A diffusers class and the arguments of its constructor."""

    class_name: Literal["UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"]
    config: dict[str, Any]

    @property
    def reads_text(self) -> bool:
        """Whether it has cross-attention."""
        kinds = ("down_block_types", "mid_block_type", "up_block_types")
        return any("CrossAttn" in str(self.config.get(kind, "")) for kind in kinds)


class DecoderArchitecture(_Strict):
    """The autoencoder of diffusers that turns a latent into an image, and the arguments of its constructor."""

    class_name: Literal["VQModel", "AutoencoderKL"]
    config: dict[str, Any]


class CheckpointConfig(_Strict):
    """A checkpoint's config; an unknown key or version is refused.

    `roles` maps each layer role to its bits and `options` are the method's own; `noise_schedule` is a diffusers
    scheduler config (see `edgedm.diffusion.NoiseSchedule`); `taps` are the modules whose output is carried from step
    to step, `mixes` which modules are mixed with which tap's previous output (by default every tap with its own), and
    `timestep_bins` the first timestep of each bin of every per-timestep table; `null_class` is the
    class label that means "unconditional"; None where there is none, as in a model without labels. A latent model has a
    `decoder`; one with cross-attention reads `condition_tokens` vectors (of its `cross_attention_dim`) a sample.
    """

    format_version: int = FORMAT_VERSION
    architecture: Architecture
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    method: Method
    roles: dict[Role, Bits]
    noise_schedule: dict[str, Any]
    null_class: int | None = Field(ge=0, le=MOST_CLASSES)
    options: dict[str, Any] = {}
    taps: list[str] = []
    mixes: dict[str, str] = {}
    timestep_bins: list[int] = []
    decoder: DecoderArchitecture | None = None
    condition_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)

    @model_validator(mode="after")
    def _consistent(self) -> "CheckpointConfig":
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"format_version: expected {FORMAT_VERSION}, got {self.format_version}")
        if self.method == "fp32" and self.options:
            raise ValueError(f"options: those of a low-bit method; method fp32 has none, got {short(self.options)}")
        bins = self.timestep_bins
        if self.taps and not bins:
            raise ValueError("taps need timestep_bins")
        strangers = set(self.mixes.values()) - set(self.taps)
        if strangers:
            raise ValueError(f"mixes: {sorted(strangers)[0]!r} is no tap")
        architecture = self.architecture.config
        labelled = architecture.get("num_class_embeds") is not None or architecture.get("class_embed_type") is not None
        if labelled and self.null_class is None:
            raise ValueError("null_class: the architecture takes class labels; name the one that means none")
        classes = architecture.get("num_class_embeds")
        if self.architecture.class_name == "DiTTransformer2DModel":
            classes = given_or_default("DiTTransformer2DModel", architecture, "num_embeds_ada_norm")
        if not labelled and classes is None and self.null_class is not None:
            raise ValueError(f"null_class: expected null, as the architecture takes no labels, got {self.null_class}")
        if isinstance(classes, int) and not labelled:
            classes += 1  # a DiT has one more, for none
        if isinstance(classes, int) and (self.null_class or 0) >= classes > 0:
            raise ValueError(f"null_class: expected 0..{classes - 1}, got {self.null_class}")
        if self.condition_tokens is not None and not isinstance(architecture.get("cross_attention_dim"), int):
            raise ValueError("condition_tokens: the architecture has no cross_attention_dim, so it reads no tokens")
        if any(after <= before for before, after in itertools.pairwise(bins)):
            raise ValueError("timestep_bins must ascend")
        if len(bins) > MOST_BINS or any(not 0 <= edge < MOST_TIMESTEPS for edge in bins):
            raise ValueError(f"timestep_bins: expected up to {MOST_BINS} timesteps in 0..{MOST_TIMESTEPS - 1}")
        size = architecture.get("sample_size")
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MOST_PIXELS:
            expected = f"expected one number of 1..{MOST_PIXELS} (images are square)"
            raise ValueError(f"architecture.config.sample_size: {expected}, got {short(size)}")
        return self

    @property
    def in_channels(self) -> int:
        """Channels of what the network draws."""
        return int(given_or_default(self.architecture.class_name, self.architecture.config, "in_channels"))

    @property
    def sample_size(self) -> int:
        """Height and width of what the network draws, in pixels (of a latent, where there is a decoder)."""
        return int(self.architecture.config["sample_size"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the network draws."""
        return self.in_channels, self.sample_size, self.sample_size

    @property
    def condition_shape(self) -> tuple[int, int] | None:
        """Tokens and their size, of a model that reads `encoder_hidden_states`; else None."""
        tokens = self.condition_tokens
        return None if tokens is None else (tokens, int(self.architecture.config["cross_attention_dim"]))

    def check_condition(self) -> None:
        """Raise `UnsupportedError` for a model that reads text and does not say how many tokens."""
        if self.architecture.reads_text and self.condition_tokens is None:
            raise UnsupportedError(
                "condition_tokens: the model has cross-attention, and its config does not say how many vectors it "
                'reads; write it into the checkpoint\'s config.json ("condition_tokens": 77 of Stable Diffusion), or '
                "give it where the checkpoint is made: edgedm.models.from_module(unet, scheduler, condition_tokens=77)"
            )

    def float_unet(self) -> nn.Module:
        """Build the full-precision network of this architecture, freshly initialised.

        Raises `InvalidModelError` if edgedm or diffusers refuses the arguments.
        """
        return construct(self.architecture.class_name, self.architecture.config, "architecture.config")


def read_config(path: Path, within: Path | None = None) -> CheckpointConfig:
    """Read `config.json`; `InvalidModelError` names the file and the key that is wrong.

    A link at `path` must end in `within`.
    """
    try:
        values = read_json(path, MAX_CONFIG_BYTES, within)
    except FileNotFoundError as error:
        raise InvalidModelError(f"{path}: no such file; a checkpoint is a folder with config.json") from error
    try:
        return parse_record(CheckpointConfig, values)
    except InvalidModelError as error:
        raise InvalidModelError(f"{path}: {error}") from error
