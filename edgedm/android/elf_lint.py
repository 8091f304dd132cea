"""Hold a shared library or program against what Android's loader, its app store and newer phones demand.

Every build for Android goes through this before it is written: what is wrong here is found out on a phone otherwise,
and some of it on few phones only.
"""

import io
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.constants import P_FLAGS
from elftools.elf.elffile import ELFFile

from edgedm.android.abi import PAGE_BYTES, Abi
from edgedm.errors import ToolchainError

SYSTEM_LIBRARIES = ("libc.so", "libm.so", "libdl.so")
JAVA_EXPORTS = ("Java_org_edgedm_", "JNI_OnLoad")

_STUMBLES = (ValueError, OverflowError, LookupError, AttributeError, TypeError, ArithmeticError, MemoryError)
_HARD_FLOAT = 0x400  # of an ARM header's flags
_LAST_OF_HEADER = 20  # bytes of an ELF header up to and with the machine
_TEXTREL = 4  # in DT_FLAGS
_FOREIGN_TAGS = {  # what a loader of API level 24 does not know, or must not be told
    "DT_RELR": "packed relocations, which Android reads from API level 28 on",
    "DT_ANDROID_RELR": "packed relocations, which Android reads from API level 28 on",
    "DT_RPATH": "a search path",
    "DT_RUNPATH": "a search path",
}


@dataclass(frozen=True)
class Demands:
    """What a library is meant to be: its ABI and file name, and the functions that it may take and give.

    `imports` None: any, where the linker has seen to it.
    """

    abi: Abi
    soname: str
    imports: frozenset[str] | None
    exports: tuple[str, ...]  # how the names of its own functions begin


def lint_library(data: bytes, demands: Demands) -> list[str]:
    """What is wrong with the shared library in `data`, in words; empty if nothing is."""
    return _lint(data, lambda file: _library_findings(file, demands))


def lint_program(data: bytes, abi: Abi) -> list[str]:
    """What is wrong with the static executable in `data`, in words; empty if nothing is."""
    return _lint(data, lambda file: _program_findings(file, abi))


def require(path: Path | str, findings: Iterable[str]) -> None:
    """Raise ToolchainError that names the file and every finding, if there is one."""
    found = list(findings)
    if found:
        raise ToolchainError(
            f"{path}: Android would refuse it: {'; '.join(found)}; build it with the toolchain of this edgedm, or "
            "report what made it"
        )


def _lint(data: bytes, look: Callable[[ELFFile], Iterator[str]]) -> list[str]:
    if data[:4] != b"\x7fELF" or len(data) < _LAST_OF_HEADER:
        return ["it is no ELF file"]
    try:
        file = ELFFile(io.BytesIO(data))
        return [*_complete(file, len(data)), *look(file)]
    except (ELFError, struct.error, *_STUMBLES) as error:  # pyelftools follows the file's own offsets, anywhere
        return [f"it is a damaged ELF file ({type(error).__name__}: {error})"]


def _complete(file: ELFFile, length: int) -> Iterator[str]:
    ends = [segment["p_offset"] + segment["p_filesz"] for segment in file.iter_segments()]
    end = max([file["e_shoff"] + file["e_shnum"] * file["e_shentsize"], *ends])
    if end > length:
        yield f"it is cut short: {length} bytes of {end}"


def _library_findings(file: ELFFile, demands: Demands) -> Iterator[str]:
    yield from _machine(file, demands.abi)
    if file["e_type"] != "ET_DYN":
        yield f"it is {file['e_type']}, no shared library"
    yield from _segments(file)
    if _segments_of(file, "PT_INTERP"):
        yield "it asks for an interpreter, as programs do"
    if _segments_of(file, "PT_TLS"):
        yield "it has thread-local storage of ELF, which Android knows from API level 29 on"
    dynamic = next(iter(_segments_of(file, "PT_DYNAMIC")), None)
    if dynamic is None:
        yield "it has no dynamic section"
        return
    tags = [(str(tag.entry.d_tag), tag) for tag in dynamic.iter_tags()]
    yield from _dynamic(tags, demands.soname)
    yield from _relocations(file, dynamic)
    yield from _symbols(dynamic, demands)


def _program_findings(file: ELFFile, abi: Abi) -> Iterator[str]:
    yield from _machine(file, abi)
    if file["e_type"] not in ("ET_EXEC", "ET_DYN"):
        yield f"it is {file['e_type']}, no program"
    yield from _segments(file)
    if _segments_of(file, "PT_INTERP"):
        yield "it asks for an interpreter: expected a static program"
    for segment in _segments_of(file, "PT_DYNAMIC"):
        needed = [tag.needed for tag in segment.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]
        if needed:
            yield f"it needs {', '.join(needed)}: expected a static program"


def _machine(file: ELFFile, abi: Abi) -> Iterator[str]:
    found = (file["e_machine"], file.elfclass, file.little_endian)
    if found != (abi.machine, abi.bits, True):
        order = "little" if file.little_endian else "big"
        yield f"it is for {found[0]} with {found[1]} bits, {order} endian: expected {abi.machine} with {abi.bits}"
    if abi.machine == "EM_ARM" and file["e_machine"] == "EM_ARM" and file["e_flags"] & _HARD_FLOAT:
        yield "it passes floats in vector registers; Android's ABI passes them as integers"


def _segments_of(file: ELFFile, kind: str) -> list[Any]:
    return [segment for segment in file.iter_segments() if segment["p_type"] == kind]


def _segments(file: ELFFile) -> Iterator[str]:
    """Alignment and access rights of what is loaded."""
    loads = _segments_of(file, "PT_LOAD")
    if not loads:
        yield "nothing of it is loaded"
    for number, segment in enumerate(loads):
        align, start, offset = segment["p_align"], segment["p_vaddr"], segment["p_offset"]
        if align < PAGE_BYTES or align % PAGE_BYTES:
            yield f"segment {number} is aligned to {align} bytes: phones with pages of {PAGE_BYTES} cannot load it"
        if (start - offset) % PAGE_BYTES:
            yield f"segment {number} lies at {start:#x} and in the file at {offset:#x}, which no page maps"
        if segment["p_flags"] & P_FLAGS.PF_W and segment["p_flags"] & P_FLAGS.PF_X:
            yield f"segment {number} may be written and executed"
    stacks = _segments_of(file, "PT_GNU_STACK")
    if not stacks or any(segment["p_flags"] & P_FLAGS.PF_X for segment in stacks):
        yield "its stack is executable"
    for relro in _segments_of(file, "PT_GNU_RELRO"):
        yield from _behind(relro, loads)


def _behind(relro: Any, loads: Iterable[Any]) -> Iterator[str]:
    """What becomes read-only is rounded up to a page: nothing that is written may lie in the rest of that."""
    end = relro["p_vaddr"] + relro["p_memsz"]
    rounded = -(-end // PAGE_BYTES) * PAGE_BYTES
    for segment in loads:
        first, last = segment["p_vaddr"], segment["p_vaddr"] + segment["p_memsz"]
        if segment["p_flags"] & P_FLAGS.PF_W and max(first, end) < min(last, rounded):
            yield f"data at {max(first, end):#x} becomes read-only with its page of {PAGE_BYTES} bytes"


def _dynamic(tags: list[tuple[str, Any]], soname: str) -> Iterator[str]:
    names = [tag.soname for kind, tag in tags if kind == "DT_SONAME"]
    if names != [soname]:
        yield f"its name is {names[0]!r}: expected {soname!r}" if names else f"it has no name: expected {soname!r}"
    for kind, tag in tags:
        if kind == "DT_NEEDED" and tag.needed not in SYSTEM_LIBRARIES:
            yield f"it needs {tag.needed}: expected none but {', '.join(SYSTEM_LIBRARIES)}"
        elif kind in _FOREIGN_TAGS:
            yield f"it has {_FOREIGN_TAGS[kind]} ({kind})"
        elif kind == "DT_TEXTREL" or (kind == "DT_FLAGS" and tag.entry.d_val & _TEXTREL):
            yield f"its code has to be changed when it is loaded ({kind})"


def _relocations(file: ELFFile, dynamic: Any) -> Iterator[str]:
    """The places that the loader writes to have to be writable, whatever the flags say."""
    writable = [
        (segment["p_vaddr"], segment["p_vaddr"] + segment["p_memsz"])
        for segment in _segments_of(file, "PT_LOAD")
        if segment["p_flags"] & P_FLAGS.PF_W
    ]
    for kind, table in dynamic.get_relocation_tables().items():
        if kind == "RELR":
            continue  # told by its tag
        places = [entry["r_offset"] for entry in table.iter_relocations()]
        bad = [place for place in places if not any(first <= place < last for first, last in writable)]
        if bad:
            yield f"{len(bad)} relocations write to what is read-only, the first at {bad[0]:#x}"


def _symbols(dynamic: Any, demands: Demands) -> Iterator[str]:
    taken: list[str] = []
    given: list[str] = []
    for symbol in dynamic.iter_symbols():
        if symbol.name and symbol["st_info"]["bind"] in ("STB_GLOBAL", "STB_WEAK"):
            (taken if symbol["st_shndx"] == "SHN_UNDEF" else given).append(symbol.name)
    unknown = [] if demands.imports is None else sorted(set(taken) - demands.imports)
    if unknown:
        yield f"it calls {', '.join(unknown)}, which is not in the list of Android's functions"
    foreign = sorted(name for name in given if not name.startswith(demands.exports))
    if foreign:
        yield f"it gives {', '.join(foreign[:5])} to other libraries: expected only {', '.join(demands.exports)}*"
    if not given:
        yield "it gives no function to anyone"
