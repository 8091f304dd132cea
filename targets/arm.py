"""ARM: AArch64 with NEON and what later cores add, 32-bit ARMv7 with NEON, and named cores."""

import platform
from pathlib import Path

from edgedm.targets.level import Core, Emulator, Level

_DOTPROD = frozenset({"dotprod"})

# What LLVM ascribes to a named core beyond its level: a Raspberry Pi's Cortex-A72 has no AES, and at run time a
# processor is asked for the level's features only. So nothing but the schedule follows from a core's name.
_NEWER = (
    *("v8a", "v8.1a", "v8.2a", "v8.3a", "v8.4a"),
    *("aes", "altnzcv", "complxnum", "crc", "fp16fml", "fptoint", "fullfp16", "jsconv", "rdm", "sha2", "sha3"),
    *("flagm", "lor", "lse", "lse2", "pauth", "predres", "rcpc", "rcpc-immo", "sb", "specrestrict", "ssbs"),
    *("CONTEXTIDREL2", "am", "ccdp", "ccpp", "dit", "el2vmsa", "el3", "ete", "mpam", "nv", "pan", "pan-rwv", "perfmon"),
    *("ras", "sel2", "spe", "tlb-rmi", "tracev8.4", "trbe", "uaops", "vh"),
)

# A Cortex-A53 refuses sdot, a Cortex-A76 smmla: what a level must not use is found out.
_QEMU_64 = Emulator(
    "qemu-aarch64-static",
    "qemu-user-static",
    (
        ("cortex-a53", frozenset({"neon"})),
        ("cortex-a76", frozenset({"neon", "dotprod"})),
        ("max", frozenset({"neon", "dotprod", "i8mm"})),
    ),
)
_QEMU_32 = Emulator("qemu-arm-static", "qemu-user-static", (("cortex-a7", frozenset({"neon"})),))

AARCH64 = Level(
    name="aarch64",
    isa="aarch64",
    features=frozenset({"neon"}),
    extras={"dotprod": "dotprod", "i8mm": "i8mm"},
    implied={"i8mm": "dotprod"},  # no core has the one without the other
    cpu="generic",
    triple="aarch64-unknown-linux-gnu",
    attributes=("+neon", *(f"-{feature}" for feature in _NEWER)),
    program_triple="aarch64-linux-musl",
    library_triple="aarch64-linux-gnu.2.28",
    emulator=_QEMU_64,
)

# Hard float has to be said twice: a triple of three parts means soft float to TVM.
ARMV7 = Level(
    name="armv7",
    isa="arm",
    features=frozenset(),
    extras={"neon": "neon"},
    required=frozenset({"neon"}),
    cpu="generic",
    triple="armv7-none-linux-gnueabihf",
    abi=(("mfloat-abi", "hard"),),
    program_triple="arm-linux-musleabihf",
    library_triple="arm-linux-gnueabihf.2.28",
    emulator=_QEMU_32,
)

LEVELS = {level.name: level for level in (AARCH64, ARMV7)}
COMBINATIONS = ("aarch64", "aarch64+dotprod", "aarch64+dotprod+i8mm", "armv7+neon")

CORES = {
    "cortex-a53": Core("aarch64", frozenset(), "cortex-a53"),
    "cortex-a55": Core("aarch64", _DOTPROD, "cortex-a55"),
    "cortex-a72": Core("aarch64", frozenset(), "cortex-a72"),
    "cortex-a76": Core("aarch64", _DOTPROD, "cortex-a76"),
    "cortex-x1": Core("aarch64", _DOTPROD, "cortex-x1"),
    "apple-m1": Core("aarch64", _DOTPROD, "apple-m1"),
}

_CPUINFO_NAME = {"neon": "asimd", "dotprod": "asimddp", "i8mm": "i8mm"}


def detect(cpuinfo: str | None = None) -> frozenset[str]:
    """Return the features, under edgedm's names, that all processors of this machine have.

    `cpuinfo` is the text of /proc/cpuinfo (read if None). Empty on anything that is no 64-bit ARM Linux.
    """
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        if platform.machine() != "aarch64" or not path.exists():
            return frozenset()
        cpuinfo = path.read_text()
    found = [set(line.partition(":")[2].split()) for line in cpuinfo.splitlines() if line.startswith("Features")]
    common = set.intersection(*found) if found else set()
    return frozenset(name for name, theirs in _CPUINFO_NAME.items() if theirs in common)
