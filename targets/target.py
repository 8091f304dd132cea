"""Targets: a base instruction-set level plus features, with the tools that compile for it.

A target's name is its level and its features, `x86-64-v4+vnni+vpopcntdq` or `aarch64+dotprod`; a named core
(`cortex-a76`) is shorthand for one, scheduled for that core; `host` is the best that this machine has. The
environment variable EDGEDM_FEATURES, itself such a name, makes `host` mean something lesser, so that one machine
tests the kernels of several.
"""

import os
from dataclasses import dataclass
from typing import Any

from edgedm.errors import ToolchainError, UnsupportedError
from edgedm.targets import android, arm, riscv, wasm, x86
from edgedm.targets.level import Level

HOST = "host"
OVERRIDE = "EDGEDM_FEATURES"

LEVELS = {**x86.LEVELS, **arm.LEVELS, **riscv.LEVELS, **wasm.LEVELS, **android.LEVELS}
CORES = {**arm.CORES, **android.CORES}
COMBINATIONS = (*x86.COMBINATIONS, *arm.COMBINATIONS, *riscv.COMBINATIONS, *wasm.COMBINATIONS, *android.COMBINATIONS)

_BOARD_CORES = 4  # of a machine that is not this one
_ONE_THREAD = frozenset({"wasm32"})  # more need a page's server to send headers, which a static one does not


@dataclass(frozen=True)
class Target:
    """A machine to compile for: `extras` are the features that it has beyond those of its base level."""

    name: str
    base: Level
    extras: frozenset[str]
    cpu: str  # LLVM's name of the CPU that code is scheduled for
    cores: int

    @property
    def isa(self) -> str:
        """The instruction set: x86, aarch64, arm, riscv64 or wasm32."""
        return self.base.isa

    @property
    def level(self) -> str:
        """Name of the base level."""
        return self.base.name

    @property
    def features(self) -> frozenset[str]:
        """What kernels may use, under edgedm's names: the level's own features and the extras."""
        return self.base.features | self.extras

    @property
    def triple(self) -> str:
        """LLVM's triple of the kernels."""
        return self.base.triple

    @property
    def vector_bytes(self) -> int:
        """Width of the widest integer and float vectors that kernels use: 64, 32 or 16."""
        if "avx512bw" in self.features:
            return 64
        return 32 if "avx2" in self.features else 16

    @property
    def has_threads(self) -> bool:
        """Whether a session there may have more than one thread."""
        return self.isa not in _ONE_THREAD

    @property
    def fused(self) -> bool:
        """Whether it has fused multiply-adds of float vectors."""
        return "fma" in self.features or self.isa == "aarch64"

    def tvm(self) -> Any:
        """Return the `tvm.target.Target` that compiles for this machine."""
        import tvm.target

        added = sorted(f"+{self.base.extras[extra]}" for extra in self.extras)
        return tvm.target.Target(
            {
                "kind": "llvm",
                "mtriple": self.triple,
                "mcpu": self.cpu,
                "mattr": [*added, *self.base.attributes],
                "num-cores": self.cores,
                "opt-level": 2,  # 3 unrolls whole nests of plain loops: a fifth more code, no faster
                **dict(self.base.abi),
            }
        )


def resolve(name: str) -> Target:
    """Return the target called `name`: `host`, a level with features such as `aarch64+dotprod`, or a named core.

    Raises UnsupportedError for a name that is unknown, and ToolchainError where `host` cannot be had:
    EDGEDM_FEATURES asks for what this machine lacks.
    """
    if name == HOST:
        return _host()
    if name in CORES:
        core = CORES[name]
        return _make(LEVELS[core.level], core.extras, name, core.cpu)
    level, *extras = name.split("+")
    if level not in LEVELS:
        raise UnsupportedError(
            f"target {name!r}: expected host, a core ({', '.join(CORES)}) or one of {', '.join(LEVELS)}, with +features"
        )
    base = LEVELS[level]
    unknown = [extra for extra in extras if extra not in base.extras]
    if unknown:
        known = ", ".join(base.extras) or "none"
        raise UnsupportedError(f"target {name!r}: unknown features {', '.join(unknown)}; those of {level} are {known}")
    if base.system == android.SYSTEM:  # its compilers take NEON for granted
        extras = [*dict.fromkeys([*extras, *sorted(base.required)])]
    missing = sorted(base.required - set(extras))
    if missing:
        raise UnsupportedError(f"target {name!r}: kernels need {', '.join(missing)}; say {'+'.join([name, *missing])}")
    return _make(base, base.complete(frozenset(extras)))


def detect() -> frozenset[str]:
    """Return the features, under edgedm's names, that this machine's processors have; empty if they are unknown."""
    return x86.detect() or arm.detect()


def _host() -> Target:
    here = detect()
    if not here:
        raise UnsupportedError(
            "target 'host': this machine is neither x86-64 nor 64-bit ARM Linux; name its target: see `edgedm targets`"
        )
    wanted = os.environ.get(OVERRIDE)
    if not wanted:
        native = x86.LEVELS if x86.detect() else {arm.AARCH64.name: arm.AARCH64}
        base = max((each for each in native.values() if each.features <= here), key=lambda each: len(each.features))
        possible = x86.extras_of(base.name) if base.isa == "x86" else tuple(base.extras)
        return _make(base, frozenset(extra for extra in possible if extra in here))
    if wanted == HOST:
        raise UnsupportedError(f"{OVERRIDE}={wanted}: expected a level with features, such as x86-64-v3")
    target = resolve(wanted)
    missing = sorted(target.features - here)
    if missing:
        raise ToolchainError(f"{OVERRIDE}={wanted}: this machine lacks {', '.join(missing)}; name fewer features")
    return target


def _make(base: Level, extras: frozenset[str], name: str | None = None, cpu: str | None = None) -> Target:
    ordered = [extra for extra in base.extras if extra in extras]
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Target(
        name=name or "+".join([base.name, *ordered]),
        base=base,
        extras=extras,
        cpu=cpu or base.cpu,
        cores=here if base.isa == "x86" and base.system == "linux" else 1 if base.isa in _ONE_THREAD else _BOARD_CORES,
    )
