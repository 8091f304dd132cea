"""Targets: a base instruction-set level plus features, a triple and a number of cores.

A target's name is its level and its features, `x86-64-v4+vnni+vpopcntdq`; `host` is the best that this machine
has. The environment variable EDGEDM_FEATURES, itself such a name, makes `host` mean something lesser, so that
one machine tests the kernels of several.
"""

import os
from dataclasses import dataclass
from typing import Any

from edgedm.errors import ToolchainError, UnsupportedError
from edgedm.outcome import Outcome
from edgedm.targets import x86

HOST = "host"
OVERRIDE = "EDGEDM_FEATURES"
_NOT_YET = "not yet built: no kernels and no toolchain for it in this version"
_PLANNED = (
    "aarch64",
    "aarch64+dotprod",
    "armv7+neon",
    "aarch64-android",
    "armv7-android",
    "riscv64",
    "wasm32+simd128",
)


@dataclass(frozen=True)
class Target:
    """A machine to compile for. `features` are those of `level` and the named ones, under their edgedm names."""

    name: str
    level: str
    features: frozenset[str]
    triple: str
    cores: int

    @property
    def vector_bytes(self) -> int:
        """Width of the widest integer and float vectors that kernels use: 64, 32 or 16."""
        if "avx512bw" in self.features:
            return 64
        return 32 if "avx2" in self.features else 16

    def tvm(self) -> Any:
        """Return the `tvm.target.Target` that compiles for this machine."""
        import tvm.target

        added = [x86.LLVM_FEATURE[extra] for extra in x86.EXTRAS if extra in self.features]
        # LLVM tunes the v4 level for early AVX-512 machines, which lowered their clock for wide vectors.
        tuning = ["-prefer-256-bit"] if self.vector_bytes == 64 else []
        return tvm.target.Target(
            {
                "kind": "llvm",
                "mtriple": self.triple,
                "mcpu": self.level,
                "mattr": [f"+{name}" for name in sorted(added)] + tuning,
                "num-cores": self.cores,
            }
        )


def resolve(name: str) -> Target:
    """Return the target called `name`: `host`, or a level with features such as `x86-64-v3+avxvnni`.

    Raises UnsupportedError for a name that is unknown or that this version has no kernels for, and
    ToolchainError where `host` cannot be had: EDGEDM_FEATURES asks for what this machine lacks.
    """
    if name == HOST:
        return _host()
    level, *extras = name.split("+")
    if level not in x86.LEVELS:
        if any(planned.partition("+")[0] == level for planned in _PLANNED):
            raise UnsupportedError(f"target {name!r}: {_NOT_YET}; `edgedm targets` lists what there is")
        raise UnsupportedError(f"target {name!r}: expected host or one of {', '.join(x86.LEVELS)}, with +features")
    unknown = [extra for extra in extras if extra not in x86.EXTRAS]
    if unknown:
        raise UnsupportedError(
            f"target {name!r}: unknown features {', '.join(unknown)}; known are {', '.join(x86.EXTRAS)}"
        )
    return _make(level, frozenset(extras))


def available() -> list[dict[str, Any]]:
    """List the targets: {name, needs, available}; `available` says whether this machine can run its kernels."""
    here = x86.detect()
    rows: list[dict[str, Any]] = []
    for name in (*x86.LEVELS, *x86.COMBINATIONS):
        target = resolve(name)
        missing = sorted(target.features - here)
        needs = f"lacks here: {', '.join(missing)}" if missing else "pip packages only"
        rows.append({"name": name, "needs": needs, "available": not missing})
    rows += [{"name": name, "needs": _NOT_YET, "available": False} for name in _PLANNED]
    return rows


def targets() -> Outcome:
    """`edgedm targets`: every target, whether it can be compiled for and run here, and what it needs."""
    rows = available()
    if x86.detect():
        rows.insert(0, {"name": f"host = {resolve(HOST).name}", "needs": "pip packages only", "available": True})
    count = sum(row["available"] for row in rows)
    return Outcome(True, {"targets.available": float(count)}, {"targets": rows})


def _host() -> Target:
    here = x86.detect()
    if not here:
        raise UnsupportedError(f"target 'host': this machine is no x86-64 Linux; others are {_NOT_YET}")
    wanted = os.environ.get(OVERRIDE)
    if not wanted:
        level = max((level for level in x86.LEVELS if x86.LEVELS[level] <= here), key=x86.ORDER.index)
        return _make(level, frozenset(extra for extra in x86.extras_of(level) if extra in here))
    if wanted == HOST:
        raise UnsupportedError(f"{OVERRIDE}={wanted}: expected a level with features, such as x86-64-v3")
    target = resolve(wanted)
    missing = sorted(target.features - here)
    if missing:
        raise ToolchainError(f"{OVERRIDE}={wanted}: this machine lacks {', '.join(missing)}; name fewer features")
    return target


def _make(level: str, extras: frozenset[str]) -> Target:
    ordered = [extra for extra in x86.EXTRAS if extra in extras]
    return Target(
        name="+".join([level, *ordered]),
        level=level,
        features=x86.LEVELS[level] | extras,
        triple=x86.TRIPLE,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
