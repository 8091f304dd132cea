"""x86-64: the psABI's four levels, the features that kernels ask for, and what this machine has."""

import platform
from pathlib import Path

from edgedm.targets.level import Level

# glibc 2.34 is the first that has threads in libc itself: nothing but libc (and libm) is loaded. The program is linked
# with it too, since another libm's exponentials and sines would give its images other last bits than the library's.
_GLIBC = "x86_64-linux-gnu.2.34"

_V1 = frozenset({"sse2"})
_V2 = _V1 | {"ssse3", "sse4.1", "sse4.2", "popcnt"}
_V3 = _V2 | {"avx", "avx2", "fma", "bmi1", "bmi2", "f16c", "lzcnt", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

_LLVM_FEATURE = {
    "avxvnni": "avxvnni",
    "vnni": "avx512vnni",
    "vbmi": "avx512vbmi",
    "vpopcntdq": "avx512vpopcntdq",
}
EXTRAS = tuple(_LLVM_FEATURE)

LEVELS = {
    name: Level(
        name=name,
        isa="x86",
        features=features,
        extras=_LLVM_FEATURE,
        cpu=name,
        triple="x86_64-unknown-linux-gnu",
        # LLVM tunes the v4 level for early AVX-512 machines, which lowered their clock for wide vectors.
        attributes=("-prefer-256-bit",) if features == _V4 else (),
        program_triple=_GLIBC,
        library_triple=_GLIBC,
    )
    for name, features in (("x86-64", _V1), ("x86-64-v2", _V2), ("x86-64-v3", _V3), ("x86-64-v4", _V4))
}
COMBINATIONS = (
    *LEVELS,
    "x86-64-v3+avxvnni",
    "x86-64-v4+vnni",
    "x86-64-v4+vnni+vpopcntdq",
    "x86-64-v4+vnni+vbmi+vpopcntdq",
)

_CPUINFO_NAME = {
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "lzcnt": "abm",
    "avxvnni": "avx_vnni",
    "vnni": "avx512_vnni",
    "vbmi": "avx512vbmi",
    "vpopcntdq": "avx512_vpopcntdq",
}


def extras_of(level: str) -> tuple[str, ...]:
    """Return the features that kernels of `level` may add: the AVX-512 ones only on v4."""
    return {"x86-64-v3": ("avxvnni",), "x86-64-v4": EXTRAS}.get(level, ())


def detect(cpuinfo: str | None = None) -> frozenset[str]:
    """Return the features, under edgedm's names, that all processors of this machine have.

    `cpuinfo` is the text of /proc/cpuinfo (read if None). Empty on anything that is no x86-64 Linux.
    """
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        if platform.machine() not in ("x86_64", "AMD64") or not path.exists():
            return frozenset()
        cpuinfo = path.read_text()
    flags = [set(line.partition(":")[2].split()) for line in cpuinfo.splitlines() if line.startswith("flags")]
    if not flags:
        return frozenset()
    common = set.intersection(*flags)
    known = _V4 | set(EXTRAS)
    return frozenset(name for name in known if _CPUINFO_NAME.get(name, name) in common)
