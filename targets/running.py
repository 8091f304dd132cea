"""What runs a target's programs on this machine, and the list of targets with what each needs."""

import contextlib
import importlib.util
from typing import Any

from edgedm.errors import ToolchainError, UnsupportedError
from edgedm.outcome import Outcome
from edgedm.targets import android, arm, x86
from edgedm.targets.target import COMBINATIONS, CORES, HOST, Target, detect, resolve

_COMPILERS = ("tvm", "ziglang")  # all that any target needs; the compiler for C brings every C library along


def runs_natively(target: Target) -> bool:
    """Whether this machine's processors have everything that the target's kernels use."""
    here = {"x86": x86.detect, "aarch64": arm.detect}.get(target.isa)
    features = here() if here else frozenset()
    return bool(features) and target.features <= features


def command_for(target: Target) -> tuple[str, ...]:
    """What to put before an executable of `target` to run it here: nothing, or an emulator with its CPU.

    Raises ToolchainError where this machine cannot run it: which tool is missing, or that a board has to.
    """
    command, missing = _running(target)
    if missing:
        raise ToolchainError(
            f"target {target.name}: to run it here, {missing}; or copy the bundle to a machine that runs it"
        )
    return command


def available() -> list[dict[str, Any]]:
    """List the targets: {name, compiles, runs, available, needs}.

    `compiles` says whether the compilers are here; `runs` is how its programs run here ("natively", the emulator's
    command, or ""); `available` says both; `needs` is what serves it, and what is missing and how to get it.
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
    compiles = all(importlib.util.find_spec(name) for name in _COMPILERS)
    command, missing = _running(target)
    emulator = target.base.emulator
    under = emulator.shown(target.features) if command and emulator else ""
    how = f"to run it here, {missing}" if missing else f"runs here under {under}" if under else "runs here"
    needs = [how] if compiles else ["to compile for it, pip install 'edgedm[compile]'", how]
    if target.base.system == android.SYSTEM:
        builds, here = android.needs()
        needs.append(builds)
        compiles = compiles and here
    return {
        "name": target.name,
        "compiles": compiles,
        "runs": "" if missing else under or "natively",
        "available": compiles and not missing,
        "needs": "; ".join(needs),
    }


def _running(target: Target) -> tuple[tuple[str, ...], str]:
    """What to put before the target's programs to run them here, and what is missing for that, or ""."""
    if runs_natively(target):
        return (), ""
    emulator = target.base.emulator
    if emulator is None:
        return (), f"the processor lacks {', '.join(sorted(target.features - detect())) or target.isa}"
    if not emulator.is_here:
        return (), f"{emulator.program} is missing ({emulator.source})"
    return emulator.command(target.features), ""
