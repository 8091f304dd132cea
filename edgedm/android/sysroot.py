"""What a library for Android is compiled and linked with where there is no NDK: made once a machine, and kept.

The headers are those of `bionic/` and of the kernel, which come with zig. The libraries to link with are stubs: they
have the names of Android's functions and nothing in them, which is all that a linker asks for. What a compiler takes
for granted (64-bit division on 32-bit ARM; thread-local variables, which Android's loader knows only from API level 29
on) comes from zig's own runtime, compiled for Android.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from edgedm.android.abi import Abi
from edgedm.android.elf_lint import SYSTEM_LIBRARIES
from edgedm.atomic import atomic_dir
from edgedm.errors import ToolchainError
from edgedm.lower import toolchain

HEADERS = Path(__file__).parent / "bionic"
RUNTIME = "runtime.o"

_NAMES_UNDEFINED = b"\0" * 2  # a symbol's section
_SECTION_IN_SYMBOL = {64: 6, 32: 14}  # offset of the number of its section in a symbol's entry
_OTHER_IN_SYMBOL = {64: 5, 32: 13}  # likewise of its visibility


@functools.cache
def functions_of(library: str) -> frozenset[str]:
    """The functions of Android's `library` (libc.so, ...) that the runtime may call."""
    return frozenset((HEADERS / library).with_suffix(".txt").read_text().split())


def imports() -> frozenset[str]:
    """The functions of all of Android's libraries that the runtime may call."""
    return frozenset().union(*map(functions_of, SYSTEM_LIBRARIES))


def compile_flags(abi: Abi) -> tuple[str, ...]:
    """Flags of zig's clang, besides those for all targets."""
    zig = zig_library()
    folders = (HEADERS, zig / "include", zig / "libc/include" / abi.kernel_headers, zig / "libc/include/any-linux-any")
    return (
        *abi.c_flags,
        "-femulated-tls",
        "-nostdinc",
        *(flag for folder in folders for flag in ("-isystem", str(folder))),
    )


def zig_library() -> Path:
    """The folder `lib` of zig: its headers and the source of its runtime."""
    found = importlib.util.find_spec("ziglang")
    if found is None or not found.submodule_search_locations:
        raise ToolchainError("the C compiler is missing: pip install 'edgedm[compile]' (package ziglang)")
    return Path(found.submodule_search_locations[0]) / "lib"


def sysroot(abi: Abi) -> Path:
    """The folder with the stub libraries and `RUNTIME` for `abi`; made where it is not there yet."""
    folder = toolchain.cache_folder() / "android" / f"{abi.name}-{_digest(abi)}"
    if not folder.is_dir():
        with atomic_dir(folder) as scratch:
            for library in SYSTEM_LIBRARIES:
                _write_stub(library, abi, scratch)
            _write_runtime(abi, scratch)
    return folder


def _digest(abi: Abi) -> str:
    digest = hashlib.sha256(f"{abi} {toolchain.zig_version()}".encode())
    for name in (*(HEADERS / library for library in SYSTEM_LIBRARIES), Path(__file__)):
        digest.update((name.with_suffix(".txt") if name.suffix == ".so" else name).read_bytes())
    return digest.hexdigest()[:16]


def _write_stub(library: str, abi: Abi, folder: Path) -> None:
    source = folder / f"{library}.c"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in sorted(functions_of(library))))
    quiet = ("-fno-builtin", "-w", "-g0", "-O1", "-fPIC", "-fno-stack-protector")
    toolchain.zig(["cc", "-target", abi.zig_triple, *abi.c_flags, *quiet, "-c", source.name, "-o", "stub.o"], folder)
    toolchain.zig(["ld.lld", "-m", abi.emulation, "-shared", "-soname", library, "-o", library, "stub.o"], folder)
    for name in (source, folder / "stub.o"):
        name.unlink()


def _write_runtime(abi: Abi, folder: Path) -> None:
    source = str(zig_library() / "compiler_rt.zig")
    flags = ("-O", "ReleaseSmall", "-fPIC", "-fstrip", "-ffunction-sections", "-fno-stack-check")
    cpu = tuple(flag for flag in abi.c_flags if flag.startswith("-mcpu"))
    toolchain.zig(
        ["build-obj", source, "-target", abi.zig_triple, *cpu, "-lc", *flags, f"-femit-bin={RUNTIME}"], folder
    )
    data = bytearray((folder / RUNTIME).read_bytes())
    _leave_to_android(data, folder / RUNTIME)
    (folder / RUNTIME).write_bytes(data)


def _leave_to_android(data: bytearray, path: Path) -> None:
    """Let the object's own memcpy, expf, ... be undefined, so that those of Android's libraries are taken.

    In an object of a library a definition wins over a shared library's, and these are made small, not fast.
    """
    with open(path, "rb") as stream:
        file = ELFFile(stream)
        table = file.get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection):
            raise ToolchainError(
                f"{path}: zig made an object without symbols; install the version of ziglang that edgedm asks for"
            )
        theirs = imports()
        for number, symbol in enumerate(table.iter_symbols()):
            if symbol.name in theirs and symbol["st_info"]["bind"] in ("STB_GLOBAL", "STB_WEAK"):
                at = table["sh_offset"] + number * table["sh_entsize"]
                section, other = at + _SECTION_IN_SYMBOL[file.elfclass], at + _OTHER_IN_SYMBOL[file.elfclass]
                data[section : section + 2] = _NAMES_UNDEFINED
                data[other] = 0
