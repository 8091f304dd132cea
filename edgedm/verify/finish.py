"""The last part of every run: levels and gates become one outcome."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgedm.models import Checkpoint
from edgedm.outcome import Outcome
from edgedm.verify import LEVELS
from edgedm.verify.evidence import Evidence
from edgedm.verify.gate import Tables
from edgedm.verify.gates import gate_rows, unmeasured_rows, with_requirements
from edgedm.verify.report import Level, Row, outcome_of
from edgedm.verify.request import Request


@dataclass(frozen=True)
class Finished:
    """What `verify` returns, and what only a report shows."""

    outcome: Outcome
    evidence: Evidence


def finish(
    levels: Sequence[Level],
    tables: Tables,
    evidence: Evidence,
    artefact: str,
    checkpoint: Checkpoint | str,
    request: Request,
    blame: Callable[[Level, Row], str],
    known: Sequence[str],
    method: str,
) -> Finished:
    """Apply the gates; `blame` says what introduced the first row that is off.

    `known` are the levels that such an artefact has, `method` is that of its checkpoint.
    """
    found = with_requirements(levels, tables)
    gates = gate_rows(found, tables, evidence.sizes, evidence.speed, of_bundle=known == LEVELS)
    gates += unmeasured_rows(found, known, request, method)
    named = checkpoint if isinstance(checkpoint, str) else "(a checkpoint in memory)"
    outcome = outcome_of(found, artefact, named, gates, blame)
    outcome.details["schedule"] = {"steps": request.steps, "sampler": request.sampler}
    return Finished(outcome, evidence)
