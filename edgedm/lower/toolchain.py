"""The C compiler: zig's clang, which comes as a Python package and brings every libc that it links against."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgedm.errors import ToolchainError
from edgedm.targets import x86

LINUX_X86_64 = x86.LEVELS["x86-64"].library_triple
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
# -ffp-contract=off: no fused multiply-adds, so that sampler and noise give the same bits everywhere.
# -fno-math-errno: sqrt is one instruction instead of a call into libm.
COMPILE: tuple[str, ...] = (
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O2",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-fdata-sections",
)
COMPILE += ("-ffp-contract=off", "-fno-math-errno")
WASM_MAGIC = b"\0asm"
LINK = ("-s", "-Wl,--gc-sections", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-lm", "-lpthread")


def zig_cc(arguments: Sequence[str], folder: Path) -> None:
    """Run `zig cc` in `folder`; ToolchainError if zig is missing or refuses."""
    zig(["cc", *arguments], folder)


def merge_objects(objects: Sequence[str], output: str, folder: Path) -> None:
    """Merge objects, ELF or WebAssembly, (names within `folder`) into one, in their order.

    What TVM says for debuggers, nearly half of its ELF objects, is left out; `--strip-debug` does nothing beside `-r`.
    Raises ToolchainError if the linker refuses.
    """
    if (folder / objects[0]).read_bytes()[:4] == WASM_MAGIC:
        zig(["wasm-ld", "-r", "-o", output, *objects], folder)
        return
    script = folder / "discard.ld"
    script.write_text("SECTIONS { /DISCARD/ : { *(.debug_*) } }\n")
    zig(["ld.lld", "-r", "-T", script.name, "-o", output, *objects], folder)


def compile_objects(sources: Sequence[str], folder: Path, triple: str, definitions: Sequence[str]) -> list[str]:
    """Compile C files (names within `folder`) side by side for one triple; returns the objects' names."""
    objects = [f"{triple}-{source.removesuffix('.c').replace('/', '-')}.o" for source in sources]
    common = ["-target", triple, *COMPILE, *WARNINGS, *definitions, "-I", "."]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        jobs = [
            pool.submit(zig_cc, [*common, "-c", source, "-o", made], folder)
            for source, made in zip(sources, objects, strict=True)
        ]
        for job in jobs:
            job.result()
    return objects


def cache_folder() -> Path:
    """Where edgedm keeps what can be made again: $XDG_CACHE_HOME/edgedm or ~/.cache/edgedm."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "edgedm"


def zig_version() -> str:
    """Version of the package ziglang."""
    return importlib.metadata.version("ziglang")


def zig(arguments: Sequence[str], folder: Path) -> None:
    """Run a command of zig in `folder`; ToolchainError if zig is missing or refuses."""
    if importlib.util.find_spec("ziglang") is None:
        raise ToolchainError("the C compiler is missing: pip install 'edgedm[compile]' (package ziglang)")
    cache = cache_folder() / "zig"
    cache.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, ZIG_GLOBAL_CACHE_DIR=str(cache), ZIG_LOCAL_CACHE_DIR=str(cache))
    command = [sys.executable, "-m", "ziglang", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolchainError(f"zig {arguments[0]} failed in {folder}:\n{done.stderr.strip()[-4000:]}")
