"""What stands where a training would write: nothing, its own finished checkpoint, or something to be kept."""

import hashlib
import json
from pathlib import Path
from typing import Any

from edgedm.atomic import check_replaceable
from edgedm.errors import UnsupportedError
from edgedm.models.checkpoint import WEIGHTS_FILE, strangeness
from edgedm.outcome import Outcome
from edgedm.training.identity import (
    CURVE_FILE,
    RUN_FILE,
    Identity,
    differences,
    discard_states,
    read_record,
    write_record,
)


def finished_before(output: Path, folder: Path, identity: Identity, overwrite: bool) -> Outcome | None:
    """Return the outcome of the run `identity` if `output` holds what it ended with; None if it is to be trained.

    `folder` is where the run keeps its states. Raises `UnsupportedError` where `output` holds another checkpoint and
    `overwrite` is not asked for, `InvalidModelError` where it is a folder of other files, which is never replaced.
    """
    check_replaceable(output, strangeness)
    if not output.exists() or not any(output.iterdir()):
        return None
    record = read_record(folder) if (folder / RUN_FILE).exists() else None
    changed = "no record of its training" if record is None else differences(record["identity"], identity)
    if record is not None and not changed and not record.get("finished"):
        return None  # it was being replaced, or the program ended just after it was written
    if overwrite:
        return None
    if record is not None and not changed and record.get("checkpoint") == digest(output):
        details = {"written": [], "finished": str(output), "curves": _curves(folder)}
        return Outcome(True, dict(record["figures"]), details)
    raise UnsupportedError(
        f"{output}: holds a finished checkpoint already ({changed or 'not the one that was trained here'}). Replace it "
        "(--overwrite) or name another folder (-o)"
    )


def digest(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint's weights."""
    with open(checkpoint / WEIGHTS_FILE, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish(folder: Path, figures: dict[str, float], output: Path) -> None:
    """Mark the run in `folder` as finished with the checkpoint `output`, and delete its states."""
    write_record(folder, read_record(folder)["identity"], figures, finished=True, checkpoint=digest(output))
    discard_states(folder)


def _curves(folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob(f"*/{CURVE_FILE}"))
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8"))["curve"] for file in files}
