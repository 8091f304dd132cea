"""What makes two runs the same run: a state is only resumed by the settings that made it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

import edgedm
from edgedm.atomic import atomic_file
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.training.options import LoopOptions

Identity = dict[str, Any]  # flat: dotted names to numbers, texts and short lists

RUN_FILE, STATE_FILE, CURVE_FILE = "run.json", "state.pt", "curve.json"
_IRRELEVANT = {"save_every"}  # changes no result
_SHOWN = 6


def flat(values: Mapping[str, Any], prefix: str = "") -> Identity:
    """Return nested mappings as one level of dotted names."""
    found: Identity = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def of_loop(options: LoopOptions) -> Identity:
    """Return what of a loop's options decides its result."""
    return {key: value for key, value in asdict(options).items() if key not in _IRRELEVANT}


def of_module(module: nn.Module) -> str:
    """Return a SHA-256 over names, shapes, dtypes and values of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check(kept: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raise `UnsupportedError` that names every setting in which a kept state and this run differ."""
    if found := differences(kept, now):
        raise UnsupportedError(
            f"{where}: this training was begun with other settings: {found}. Give the same ones to go on "
            "from it, discard it (--restart), or train in another folder (--runs)"
        )


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the settings in which two runs differ, as text; "" where there are none."""
    now = json.loads(json.dumps(now))
    names = sorted(name for name in kept.keys() | now.keys() if kept.get(name) != now.get(name))
    shown = [f"{name} was {_text(kept.get(name))}, is {_text(now.get(name))}" for name in names[:_SHOWN]]
    more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(shown) + more


def _text(value: Any) -> str:
    if value is None:
        return "absent"
    text = str(value)
    return text if len(text) <= 24 else text[:16] + "..."


def claim(folder: Path, identity: Identity, restart: bool) -> None:
    """Make `folder` the place of the run `identity`: its states are resumed, those of another run are refused.

    With `restart`, and where a former run is finished (its states are gone), the folder is taken over. Files that
    training did not write are left alone.
    """
    record = folder / RUN_FILE
    if restart:
        discard_states(folder)
    if record.exists() and any(folder.glob(f"*/{STATE_FILE}")):
        check(read_record(folder)["identity"], identity, folder)
    else:
        write_record(folder, identity, {}, finished=False)


def read_record(folder: Path) -> dict[str, Any]:
    """Return `run.json` of a folder that has one. Raises `InvalidModelError` for a file that is no such record."""
    path = folder / RUN_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["identity"], dict):
            raise TypeError("identity is no object")
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidModelError(f"{path}: not the record of a training run: {error}") from error
    return dict(record)


def write_record(
    folder: Path, identity: Identity, figures: Mapping[str, float], finished: bool, checkpoint: str | None = None
) -> None:
    """Write `run.json`: what the run is, whether it is finished, its figures and the hash of its checkpoint."""
    values = {
        "edgedm": edgedm.__version__,
        "finished": finished,
        "identity": identity,
        "figures": dict(figures),
        "checkpoint": checkpoint,
    }
    with atomic_file(folder / RUN_FILE) as path:
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def discard_states(folder: Path) -> None:
    """Delete the states of all stages in `folder`; curves and the record stay."""
    for path in folder.glob(f"*/{STATE_FILE}"):
        path.unlink()
