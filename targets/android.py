"""Android: the processors of arm.py and x86.py under its triples, which reserve what its C library does (x18).

What an Android system of an ABI may count on is the base level: NEON on ARM, SSE4.2 and POPCNT (x86-64-v2) on x86-64.
Programs are static Linux ones, for `adb shell`; the shared library is Android's: see edgedm/android.
"""

import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgedm.errors import ToolchainError
from edgedm.targets import arm, x86
from edgedm.targets.level import Core, Level

SYSTEM = "android"

API_LEVEL = 24
"""Android 7.0, older than any phone whose system is still kept up."""

PAGE_BYTES = 16 << 10
"""Newer phones have pages of 16 KiB; a library whose segments are aligned to them runs on those of 4 KiB too."""

SOFT_FLOAT = ("-mcpu=generic+v7a+neon", "-mfloat-abi=softfp")
"""Of ARMv7, for clang: vectors, but floats are passed as integers are."""

NDK = "ANDROID_NDK_HOME"
"""The environment variable that names the folder of an NDK."""

_NO_STACK = "-Wl,-z,noexecstack"
# Of programs; as those of Linux, and they run where pages have 16 KiB too.
_LINK = ("-s", "-Wl,--gc-sections", "-Wl,--build-id=none", _NO_STACK, f"-Wl,-z,max-page-size={PAGE_BYTES}")


def _of(base: Level, name: str, triple: str, extras: tuple[str, ...], **changed: Any) -> Level:
    return replace(
        base,
        name=name,
        system=SYSTEM,
        triple=triple,
        extras={extra: base.extras[extra] for extra in extras},
        library_triple="",  # see edgedm/android/abi.py
        **{"link_flags": _LINK, **changed},
    )


ARM64 = _of(arm.AARCH64, "android-arm64", f"aarch64-none-linux-android{API_LEVEL}", tuple(arm.AARCH64.extras))

# Programs too: they share the kernels with the library.
ARMV7 = _of(
    arm.ARMV7,
    "android-armv7",
    f"armv7a-none-linux-androideabi{API_LEVEL}",
    tuple(arm.ARMV7.extras),
    abi=(("mfloat-abi", "soft"),),
    program_triple="arm-linux-musleabi",
    c_flags=SOFT_FLOAT,
    link_flags=(*_LINK, *SOFT_FLOAT),
)

X86_64 = tuple(
    _of(
        x86.LEVELS[f"x86-64-{number}"],
        "android-x86_64" if number == "v2" else f"android-x86_64-{number}",
        f"x86_64-none-linux-android{API_LEVEL}",
        x86.extras_of(f"x86-64-{number}"),
        program_triple="x86_64-linux-musl",
    )
    for number in ("v2", "v3", "v4")
)

LEVELS = {level.name: level for level in (ARM64, ARMV7, *X86_64)}
COMBINATIONS = (
    *(f"android-arm64{extras}" for extras in ("", "+dotprod", "+dotprod+i8mm")),
    "android-armv7+neon",
    *(
        f"android-x86_64{name.removeprefix('x86-64').removeprefix('-v2')}"
        for name in x86.COMBINATIONS
        if name != "x86-64"
    ),
)

# An Apple core runs no Android.
CORES = {
    f"android-{name}": Core(ARM64.name, core.extras, core.cpu)
    for name, core in arm.CORES.items()
    if not name.startswith("apple")
}


def javac() -> str | None:
    """Where Java's compiler is: in JAVA_HOME or the search path; None if there is none."""
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin/javac").is_file():
        return str(Path(home) / "bin/javac")
    return shutil.which("javac")


def named_ndk() -> Path | None:
    """The folder of the NDK that the environment names; None where it names none.

    ToolchainError for a name of something else.
    """
    named = os.environ.get(NDK)
    if not named:
        return None
    if not clang_of(Path(named)).is_file():
        raise ToolchainError(
            f"{NDK}={named}: {clang_of(Path(named))} is missing; name the folder of an NDK for this machine, or unset "
            f"{NDK} to build with what pip installed"
        )
    return Path(named)


def clang_of(folder: Path) -> Path:
    """The compiler of an NDK for this machine."""
    system = {"Darwin": "darwin", "Windows": "windows"}.get(platform.system(), "linux")
    suffix = ".exe" if system == "windows" else ""
    return folder / "toolchains/llvm/prebuilt" / f"{system}-x86_64" / "bin" / f"clang{suffix}"


def needs() -> tuple[str, bool]:
    """What builds an app's library and AAR, in words, and whether what builds the library is here."""
    java = "which is here" if javac() else "which is missing: install a JDK"
    try:
        folder = named_ndk()
    except ToolchainError as error:
        return f"{error}; for an AAR javac, {java}", False
    library = f"the NDK in {folder}" if folder else "pip packages"
    return f"the library by {library}; for an AAR javac, {java}", True
