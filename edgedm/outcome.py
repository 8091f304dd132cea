"""What every verb returns: a verdict, flat figures and free-form details."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """Result of one verb; `--json` prints exactly these three fields.

    `figures` maps flat dotted names to plain numbers (`step_ms.edgedm.t1`), so that a script can read them
    without knowing the verb; `details` holds whatever else a reader wants (tables, paths, texts).
    """

    ok: bool
    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
