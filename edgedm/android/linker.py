"""Objects -> a shared library for Android, by the NDK where ANDROID_NDK_HOME names one and by zig otherwise."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgedm.android import elf_lint
from edgedm.android.abi import Abi
from edgedm.android.sysroot import RUNTIME, compile_flags, imports, sysroot
from edgedm.errors import ToolchainError
from edgedm.lower import toolchain
from edgedm.targets.android import PAGE_BYTES, clang_of, named_ndk

COMPAT = "android/compat.h"  # beside the C files: what the C library lacks
MERGED = "lib/libedgedm.o"
"""All objects of a bundle's library in one, which `edgedm package` links again under the name of an app's model."""

_EXPORTS = "exports.map"
_FORBIDDEN_IN_NDK = ("-Werror",)  # a newer clang may warn of more
_LINK = (
    "-z",
    f"max-page-size={PAGE_BYTES}",
    "-z",
    "noexecstack",
    "-z",
    "relro",
    "-z",
    "now",
    "--hash-style=both",
    "--gc-sections",
    "--no-undefined",
    "--build-id=sha1",
    "--strip-all",
)


def toolchain_name() -> str:
    """What compiles for Android here, as a bundle's manifest names it."""
    ndk = named_ndk()
    if ndk is None:
        return f"zig {toolchain.zig_version()}"
    properties = ndk / "source.properties"
    text = properties.read_text() if properties.is_file() else ""
    versions = [line.partition("=")[2].strip() for line in text.splitlines() if line.startswith("Pkg.Revision")]
    return f"ndk {versions[0] if versions else 'of unknown version'}"


def compile_objects(sources: Sequence[str], folder: Path, abi: Abi, definitions: Sequence[str]) -> list[str]:
    """Compile C files (names within `folder`) for a shared library; returns the objects' names."""
    flags = ["-include", COMPAT, *definitions]
    ndk = named_ndk()
    if ndk is None:
        return toolchain.compile_objects(sources, folder, abi.zig_triple, [*compile_flags(abi), *flags])
    warnings = [each for each in toolchain.WARNINGS if each not in _FORBIDDEN_IN_NDK]
    common = [*_ndk_target(abi), *toolchain.COMPILE, *warnings, *flags, "-I", "."]
    objects = [f"{abi.name}-{source.removesuffix('.c').replace('/', '-')}.o" for source in sources]
    for source, made in zip(sources, objects, strict=True):
        _ndk_clang(ndk, [*common, "-c", source, "-o", made], folder)
    return objects


def link_library(objects: Sequence[str], folder: Path, abi: Abi, soname: str, prefix: str) -> bytes:
    """Link objects (names within `folder`) into a library of this name, whose functions begin with `prefix`.

    Raises ToolchainError if the linker refuses, or for what Android would refuse: see `elf_lint`.
    """
    exports = (prefix, *elf_lint.JAVA_EXPORTS)
    (folder / _EXPORTS).write_text(f"{{ global: {' '.join(f'{each}*;' for each in exports)} local: *; }};\n")
    output, ndk = folder / soname, named_ndk()
    flags = [*_LINK, "-soname", soname, f"--version-script={_EXPORTS}"]
    if ndk is None:
        root = sysroot(abi)
        libraries = [str(root / RUNTIME), "-L", str(root), "-lm", "-lc"]
        toolchain.zig(
            ["ld.lld", "-m", abi.emulation, "-shared", *flags, "-o", output.name, *objects, *libraries], folder
        )
    else:
        passed = [f"-Wl,{flag}" for flag in flags]
        _ndk_clang(ndk, [*_ndk_target(abi), "-shared", *passed, "-o", output.name, *objects, "-lm"], folder)
    data = output.read_bytes()
    allowed = imports() if ndk is None else None  # the NDK's own stubs have all of that API level
    elf_lint.require(output.name, elf_lint.lint_library(data, elf_lint.Demands(abi, soname, allowed, exports)))
    return data


def _ndk_target(abi: Abi) -> tuple[str, ...]:
    return (f"--target={abi.ndk_triple}", *(flag for flag in abi.c_flags if not flag.startswith("-mcpu")))


def _ndk_clang(ndk: Path, arguments: Sequence[str], folder: Path) -> None:
    command = [str(clang_of(ndk)), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolchainError(f"the NDK's clang failed in {folder}:\n{done.stderr.strip()[-4000:]}")
