"""What runs a target's programs on this machine, and the list of targets with what each needs."""

import contextlib
from typing import Any

from edgedm.errors import ToolchainError, UnsupportedError
from edgedm.outcome import Outcome
from edgedm.targets import android, arm, x86
from edgedm.targets.target import COMBINATIONS, CORES, HOST, Target, detect, resolve


def runs_natively(target: Target) -> bool:
    """Whether this machine's processors have everything that the target's kernels use."""
    here = {"x86": x86.detect, "aarch64": arm.detect}.get(target.isa)
    features = here() if here else frozenset()
    return bool(features) and target.features <= features


def command_for(target: Target) -> tuple[str, ...]:
    """What to put before an executable of `target` to run it here: nothing, or an emulator with its CPU.

    Raises ToolchainError where this machine cannot run it: which tool is missing, or that a board has to.
    """
    if runs_natively(target):
        return ()
    emulator = target.base.emulator
    if emulator is None:
        missing = ", ".join(sorted(target.features - detect())) or target.isa
        raise ToolchainError(f"target {target.name}: this machine lacks {missing}; copy the bundle to one that has it")
    if not emulator.is_here:
        raise ToolchainError(
            f"target {target.name}: to run it here, {emulator.program} is needed ({emulator.source}); or copy the "
            "bundle to such a machine"
        )
    return emulator.command(target.features)


def available() -> list[dict[str, Any]]:
    """List the targets: {name, needs, available, runs}.

    `available` says whether everything is here to compile for it and to run that; `runs` is how ("natively", the
    emulator's command, or "").
    """
    return [_row(resolve(name)) for name in (*COMBINATIONS, *CORES)]


def targets() -> Outcome:
    """`edgedm targets`: every target, whether it can be compiled for and run here, and what it needs."""
    rows = available()
    with contextlib.suppress(UnsupportedError):  # on neither x86-64 nor ARM there is no host, only the others
        rows.insert(0, {**_row(resolve(HOST)), "name": f"host = {resolve(HOST).name}"})
    count = sum(row["available"] for row in rows)
    return Outcome(True, {"targets.available": float(count)}, {"targets": rows})


def _row(target: Target) -> dict[str, Any]:
    row = _program_row(target)
    return {**row, "needs": f"{row['needs']}; {android.needs()}"} if target.base.system == "android" else row


def _program_row(target: Target) -> dict[str, Any]:
    row: dict[str, Any] = {"name": target.name, "available": True, "runs": "natively", "needs": "pip packages only"}
    if runs_natively(target):
        return row
    emulator = target.base.emulator
    if emulator is None:
        missing = ", ".join(sorted(target.features - detect()))
        return {
            **row,
            "available": False,
            "runs": "",
            "needs": f"compiles here; to run it this machine lacks {missing}",
        }
    command = emulator.shown(target.features)
    if emulator.is_here:
        return {**row, "runs": command, "needs": f"pip packages; runs here under {command}"}
    needs = f"compiles here; to run it, {emulator.program} (package {emulator.package}) is missing"
    return {**row, "available": False, "runs": "", "needs": needs}
