"""The gate file: what a team demands of `edgedm verify` beyond the levels' own rules, and what it looks at.

A TOML file, read whole before anything runs. Its tables are named after the levels, with `size` and `speed` beside
them; `[method.NAME.<table>]` holds what differs for checkpoints of one method, so that one file serves a whole zoo.
What the file leaves out comes from `DEFAULTS` of the method, then from the fields below. An unknown key is refused.
"""

import contextlib
import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

from edgedm.errors import InvalidModelError, short
from edgedm.files import check_regular

MAX_BYTES = 1 << 16
"""No gate file is larger; TOML is parsed in memory."""

MAX_PARTS = 100
"""Dots in a line: the parser's time and memory grow with the square of a key's parts, of which ours has up to four."""

NOISES = ("same", "independent")
TESTS = 3 * len(NOISES)
"""Rows of level distribution, each of which could fail by chance: distance, precision and recall by noise."""

MARGIN = 16
"""So many times rarer than a row's chance is the rarest that exchanged pairs give, so that throws tell it apart."""

Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class _LevelGate(_Table):
    """`required` false: the level is run and shown, but does not decide."""

    required: StrictBool = True


class ConstantsGate(_LevelGate):
    """Of level weights: bit for bit, so there is nothing to set but whether it decides."""


class KernelGate(_LevelGate):
    """Of levels op and pass: the largest error over its rounding bound."""

    max_use_of_bound: Positive | None = None


class LayerGate(_LevelGate):
    """Of level layer; `max_flip_share` counts codes of all layers that rounding decided otherwise than torch did."""

    max_use_of_bound: Positive | None = None
    max_flip_share: Share | None = 1e-4
    max_left_out: Annotated[int, Field(strict=True, ge=0)] | None = None


class StepGate(_LevelGate):
    """Of level step: our error over torch float32's, and the signal-to-noise ratio of the output against float64."""

    ratio: Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)] = 2.0
    min_snr_db: Number | None = None


class TrajectoryGate(_LevelGate):
    """Of level trajectory: the ratio as above; the peak signal-to-noise ratio of the images against float64's.

    Of a latent model those are the decoded images.
    """

    ratio: Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)] = 2.0
    min_psnr_db: Number | None = None
    min_worst_psnr_db: Number | None = None


class DistributionGate(_LevelGate):
    """Of level distribution: how many samples, which shift counts, and how seldom the level may fail equal engines.

    `max_shift` is the Frechet distance beyond chance over the variance of torch's features: 0.01 is a mean that moved
    by a tenth of a standard deviation in every direction. `max_drop` is by how much precision and recall may fall below
    what chance gives: a share of the images. Distances of all pairs of images are held in memory, and a chance takes
    a dozen times its inverse of throws to tell: hence the bounds of `samples` and `chance`.
    """

    samples: Annotated[int, Field(strict=True, ge=16, le=8192)] = 256
    chance: Annotated[float, Field(strict=True, ge=1e-4, le=0.5)] = 1e-3
    max_shift: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.01
    max_drop: Share = 0.02
    min_precision: Share | None = None
    min_recall: Share | None = None


class SizeGate(_Table):
    """Of a bundle: bytes of the folder without golden data, of what a program loads, and the ratio to float32."""

    max_bundle_bytes: Annotated[int, Field(strict=True, ge=1)] | None = None
    max_shipped_bytes: Annotated[int, Field(strict=True, ge=1)] | None = None
    min_ratio: Positive | None = None


class SpeedGate(_Table):
    """Of a bundle that runs here: milliseconds a step on one thread, and how many times torch's speed that is."""

    max_step_ms: Positive | None = None
    min_times_torch: Positive | None = None


class Tables(_Table):
    """The tables of one gate, of all methods or of one."""

    weights: ConstantsGate = ConstantsGate()
    op: KernelGate = KernelGate()
    passes: KernelGate = Field(default=KernelGate(), alias="pass")
    layer: LayerGate = LayerGate()
    step: StepGate = StepGate()
    trajectory: TrajectoryGate = TrajectoryGate()
    distribution: DistributionGate = DistributionGate()
    size: SizeGate = SizeGate()
    speed: SpeedGate = SpeedGate()

    def of_level(self, name: str) -> _LevelGate:
        """The table of a level."""
        found: _LevelGate = getattr(self, "passes" if name == "pass" else name)
        return found


LevelName = Literal["weights", "op", "pass", "layer", "step", "trajectory", "distribution"]
MethodName = Literal[
    "fp32", "binarydm", "bidm", "efficientdm", "dilatequant", "xnor", "dorefa", "reactnet", "lsq", "ptq"
]


class Gate(Tables):
    """A gate file: which levels, over which schedule, and the tables; `method` holds what differs for some methods."""

    levels: Annotated[tuple[LevelName, ...], Field(min_length=1)] | None = None
    steps: Annotated[int, Field(strict=True, ge=1, le=100_000)] | None = None
    sampler: Literal["ddim", "ddpm", "dpm-solver++"] | None = None
    images: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = None  # drawn together, all their steps in memory
    timesteps: Count | None = None
    sample: Count | None = None
    features: Annotated[str, Field(min_length=1)] | None = None
    method: dict[MethodName, Tables] = {}

    @model_validator(mode="after")
    def _samples_tell(self) -> "Gate":
        for name in ("", *self.method):
            _check_samples(self.of_method(name).distribution, f"method.{name}.distribution" if name else "distribution")
        return self

    def of_method(self, name: str) -> Tables:
        """The tables that hold for a checkpoint of method `name`: its own, the file's, the method's defaults."""
        return Tables.model_validate(_merged(DEFAULTS.get(name, {}), self.written(name)))

    def written(self, name: str) -> dict[str, dict[str, Any]]:
        """What the file itself says for a checkpoint of method `name`, by table and key."""
        return _merged(_written(self), _written(self.method.get(name)))  # type: ignore[call-overload]


def _check_samples(gate: DistributionGate, where: str) -> None:
    """ValueError where a shift, however large, might not fail the Frechet distance.

    Pairs all exchanged give the same distance as none, so with n pairs nothing is rarer than 2 / 2^n.
    """
    rarest = 2.0 ** (1 - gate.samples) * TESTS * MARGIN
    if rarest > gate.chance:
        least = gate.samples + math.ceil(math.log2(rarest / gate.chance))
        digit = 10.0 ** (math.floor(math.log10(rarest)) - 1)
        enough = math.ceil(rarest / digit) * digit  # two digits, rounded up
        raise ValueError(
            f"{where}: with samples = {gate.samples} and chance = {gate.chance:g} a shift, however large, might not "
            f"show; expected at least {least} samples, or a chance of at least {enough:g}"
        )


DEFAULTS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "fp32": {
        "step": {"min_snr_db": 80.0},
        "trajectory": {"min_psnr_db": 60.0, "min_worst_psnr_db": 30.0},
        "layer": {"max_flip_share": 0.0},
    },
}
"""What differs by method where the file says nothing. A network in floats decides nothing, so its images are torch's
but for rounding, all of them. A low-bit one amplifies a single decision that rounding took the other way, in torch as
in the bundle, so that only the ratio to torch float32's own error means anything."""


def load_gate(path: str | os.PathLike[str]) -> Gate:
    """Read a gate file; `InvalidModelError` names the file and the key that is unknown or out of range.

    The features that it names must lie in its folder, links and all: whoever sends a gate names no other files.
    """
    path = Path(path)
    try:
        if check_regular(path) > MAX_BYTES:
            raise InvalidModelError(f"{path}: expected at most {MAX_BYTES} bytes of TOML")
        text = path.read_text(encoding="utf-8-sig")  # which some editors begin with a mark
        for number, line in enumerate(text.split("\n"), 1):
            if _without_comment(line).count(".") > MAX_PARTS:
                raise InvalidModelError(
                    f"{path}: line {number} has more than {MAX_PARTS} dots; a key has up to four parts"
                )
        values = tomllib.loads(text)
    except FileNotFoundError as error:
        raise InvalidModelError(f"{path}: no such file; expected a gate file in TOML") from error
    except (ValueError, RecursionError) as error:  # TOML and UTF-8 errors are ValueErrors
        raise InvalidModelError(f"{path}: not valid TOML: {error}") from error
    try:
        gate = Gate.model_validate(values)
    except ValidationError as error:
        raise InvalidModelError(f"{path}: {_first(error)}") from error
    if gate.features is not None:
        named = Path(gate.features)
        if "\0" in gate.features or named.is_absolute() or ".." in named.parts:
            raise InvalidModelError(
                f"{path}: features: expected a file below the folder of the gate file, got {short(gate.features)}; "
                "another one is named by --features"
            )
        with contextlib.suppress(FileNotFoundError):  # said when it is read
            check_regular(path.parent / named, path.parent)
    return gate


def _without_comment(line: str) -> str:
    """The line up to its comment; all of it where a # might stand in quotes."""
    code, _, _ = line.partition("#")
    return line if "'" in code or '"' in code else code


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, by its dotted key."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if not first["loc"]:  # of several keys together: it names them
        return str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(_keys(first["loc"][:-1]))
        return f"{where or repr(where)}: unknown key; expected one of {known}"
    return f"{where}: {first['msg']}, got {short(first['input'])}"


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """The keys that the table at `place` may have."""
    model: type[BaseModel] = Gate
    for part in place:
        if model is Gate and part == "method":
            continue
        field = next(
            (each for name, each in model.model_fields.items() if part in (name, each.alias)),
            None,
        )
        if field is None:  # the name of a method
            model = Tables
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return [each.alias or name for name, each in model.model_fields.items()]


def _merged(*sources: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tables of which later ones go before earlier ones, key by key."""
    merged: dict[str, dict[str, Any]] = {}
    for source in sources:
        for table, values in source.items():
            merged.setdefault(table, {}).update(values)
    return merged


def _written(tables: Tables | None) -> dict[str, dict[str, Any]]:
    """What the file itself sets, by table and key."""
    if tables is None:
        return {}
    found = tables.model_dump(exclude_unset=True, by_alias=True)
    return {name: value for name, value in found.items() if name in _TABLES}


_TABLES = [each.alias or name for name, each in Tables.model_fields.items()]
