"""Hold a shared library or program against what Android's loader, its app store and newer phones demand.

Every build for Android goes through this before it is written: what is wrong here is found out on a phone otherwise,
and some of it on few phones only.
"""

import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.constants import P_FLAGS
from elftools.elf.elffile import ELFFile

from edgedm.android.abi import Abi
from edgedm.errors import ToolchainError
from edgedm.targets.android import PAGE_BYTES

SYSTEM_LIBRARIES = ("libc.so", "libm.so", "libdl.so")
JAVA_EXPORTS = ("JNI_OnLoad",)

_STUMBLES = (ValueError, OverflowError, LookupError, AttributeError, TypeError, ArithmeticError, MemoryError)
_HARD_FLOAT = 0x400  # of an ARM header's flags
_LAST_OF_HEADER = 20  # bytes of an ELF header up to and with the machine
_TEXTREL = 4  # in DT_FLAGS
_SEEN = ("STB_GLOBAL", "STB_WEAK")  # symbols that other files see
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


@dataclass(frozen=True)
class _Segment:
    kind: str
    flags: int
    align: int
    start: int  # in memory
    memory: int  # bytes there
    offset: int  # in the file
    size: int  # bytes there

    @property
    def is_writable(self) -> bool:
        return bool(self.flags & P_FLAGS.PF_W)

    @property
    def is_executable(self) -> bool:
        return bool(self.flags & P_FLAGS.PF_X)


@dataclass(frozen=True)
class _Elf:
    """What a file says, as plain values."""

    kind: str
    machine: str
    bits: int
    little: bool
    flags: int
    end: int  # how long it must be
    segments: Sequence[_Segment]
    tags: Sequence[tuple[str, str | int]] | None  # of the dynamic section; None without one
    relocated: Sequence[int]  # places
    taken: Sequence[str]  # symbols of others
    given: Sequence[str]  # symbols for others

    def of(self, kind: str) -> list[_Segment]:
        """Its segments of a kind."""
        return [segment for segment in self.segments if segment.kind == kind]


def lint_library(data: bytes, demands: Demands) -> list[str]:
    """What is wrong with the shared library in `data`, in words; empty if nothing is."""
    elf = _read(data)
    return [elf] if isinstance(elf, str) else [*_complete(elf, len(data)), *_library_findings(elf, demands)]


def lint_program(data: bytes, abi: Abi) -> list[str]:
    """What is wrong with the static executable in `data`, in words; empty if nothing is."""
    elf = _read(data)
    return [elf] if isinstance(elf, str) else [*_complete(elf, len(data)), *_program_findings(elf, abi)]


def require(path: Path | str, findings: Iterable[str]) -> None:
    """Raise ToolchainError that names the file and every finding, if there is one."""
    found = list(findings)
    if found:
        raise ToolchainError(
            f"{path}: Android would refuse it: {'; '.join(found)}; build it with the toolchain of this edgedm, or "
            "report what made it"
        )


def _read(data: bytes) -> _Elf | str:
    """The file's content, or why it has none. Only here does what it says lead pyelftools anywhere."""
    if data[:4] != b"\x7fELF" or len(data) < _LAST_OF_HEADER:
        return "it is no ELF file"
    try:
        return _parsed(ELFFile(io.BytesIO(data)))
    except (ELFError, struct.error, *_STUMBLES) as error:
        return f"it is a damaged ELF file ({type(error).__name__}: {error})"


def _parsed(file: ELFFile) -> _Elf:
    segments = [_segment(each) for each in file.iter_segments()]
    dynamic = next((each for each in file.iter_segments() if each["p_type"] == "PT_DYNAMIC"), None)
    symbols = [] if dynamic is None else [_symbol(each) for each in dynamic.iter_symbols()]
    return _Elf(
        kind=file["e_type"],
        machine=file["e_machine"],
        bits=file.elfclass,
        little=file.little_endian,
        flags=file["e_flags"],
        end=max(
            [file["e_shoff"] + file["e_shnum"] * file["e_shentsize"], *(each.offset + each.size for each in segments)]
        ),
        segments=segments,
        tags=None if dynamic is None else [_tag(each) for each in dynamic.iter_tags()],
        relocated=[] if dynamic is None else _relocated(dynamic),
        taken=[name for name, bind, section in symbols if name and bind in _SEEN and section == "SHN_UNDEF"],
        given=[name for name, bind, section in symbols if name and bind in _SEEN and section != "SHN_UNDEF"],
    )


def _segment(segment: Any) -> _Segment:
    names = ("p_type", "p_flags", "p_align", "p_vaddr", "p_memsz", "p_offset", "p_filesz")
    return _Segment(*(segment[name] for name in names))


def _tag(tag: Any) -> tuple[str, str | int]:
    kind = str(tag.entry.d_tag)
    return kind, tag.needed if kind == "DT_NEEDED" else tag.soname if kind == "DT_SONAME" else tag.entry.d_val


def _relocated(dynamic: Any) -> list[int]:
    """Packed ones are told by their tag."""
    tables = [table for kind, table in dynamic.get_relocation_tables().items() if kind != "RELR"]
    return [entry["r_offset"] for table in tables for entry in table.iter_relocations()]


def _symbol(symbol: Any) -> tuple[str, str, str]:
    return symbol.name, symbol["st_info"]["bind"], symbol["st_shndx"]


def _complete(elf: _Elf, length: int) -> Iterator[str]:
    if elf.end > length:
        yield f"it is cut short: {length} bytes of {elf.end}"


def _library_findings(elf: _Elf, demands: Demands) -> Iterator[str]:
    yield from _machine(elf, demands.abi)
    if elf.kind != "ET_DYN":
        yield f"it is {elf.kind}, no shared library"
    yield from _segments(elf)
    if elf.of("PT_INTERP"):
        yield "it asks for an interpreter, as programs do"
    if elf.of("PT_TLS"):
        yield "it has thread-local storage of ELF, which Android knows from API level 29 on"
    if elf.tags is None:
        yield "it has no dynamic section"
        return
    yield from _dynamic(elf.tags, demands.soname)
    yield from _relocations(elf)
    yield from _symbols(elf, demands)


def _program_findings(elf: _Elf, abi: Abi) -> Iterator[str]:
    yield from _machine(elf, abi)
    if elf.kind not in ("ET_EXEC", "ET_DYN"):
        yield f"it is {elf.kind}, no program"
    yield from _segments(elf)
    if elf.of("PT_INTERP"):
        yield "it asks for an interpreter: expected a static program"
    needed = [str(value) for kind, value in elf.tags or () if kind == "DT_NEEDED"]
    if needed:
        yield f"it needs {', '.join(needed)}: expected a static program"


def _machine(elf: _Elf, abi: Abi) -> Iterator[str]:
    if (elf.machine, elf.bits, elf.little) != (abi.machine, abi.bits, True):
        order = "little" if elf.little else "big"
        yield f"it is for {elf.machine} with {elf.bits} bits, {order} endian: expected {abi.machine} with {abi.bits}"
    if abi.machine == "EM_ARM" and elf.machine == "EM_ARM" and elf.flags & _HARD_FLOAT:
        yield "it passes floats in vector registers; Android's ABI passes them as integers"


def _segments(elf: _Elf) -> Iterator[str]:
    """Alignment and access rights of what is loaded."""
    loads = elf.of("PT_LOAD")
    if not loads:
        yield "nothing of it is loaded"
    for number, each in enumerate(loads):
        if each.align < PAGE_BYTES or each.align % PAGE_BYTES:
            yield f"segment {number} is aligned to {each.align} bytes: phones with pages of {PAGE_BYTES} cannot load it"
        if (each.start - each.offset) % PAGE_BYTES:
            yield f"segment {number} lies at {each.start:#x} and in the file at {each.offset:#x}, which no page maps"
        if each.is_writable and each.is_executable:
            yield f"segment {number} may be written and executed"
    stacks = elf.of("PT_GNU_STACK")
    if not stacks or any(each.is_executable for each in stacks):
        yield "its stack is executable"
    for relro in elf.of("PT_GNU_RELRO"):
        yield from _behind(relro, loads)


def _behind(relro: _Segment, loads: Iterable[_Segment]) -> Iterator[str]:
    """What becomes read-only is rounded up to a page: nothing that is written may lie in the rest of that."""
    end = relro.start + relro.memory
    rounded = -(-end // PAGE_BYTES) * PAGE_BYTES
    for each in loads:
        first = max(each.start, end)
        if each.is_writable and first < min(each.start + each.memory, rounded):
            yield f"data at {first:#x} becomes read-only with its page of {PAGE_BYTES} bytes"


def _dynamic(tags: Sequence[tuple[str, str | int]], soname: str) -> Iterator[str]:
    names = [value for kind, value in tags if kind == "DT_SONAME"]
    if names != [soname]:
        yield f"its name is {names[0]!r}: expected {soname!r}" if names else f"it has no name: expected {soname!r}"
    for kind, value in tags:
        if kind == "DT_NEEDED" and value not in SYSTEM_LIBRARIES:
            yield f"it needs {value}: expected none but {', '.join(SYSTEM_LIBRARIES)}"
        elif kind in _FOREIGN_TAGS:
            yield f"it has {_FOREIGN_TAGS[kind]} ({kind})"
        elif kind == "DT_TEXTREL" or (kind == "DT_FLAGS" and int(value) & _TEXTREL):
            yield f"its code has to be changed when it is loaded ({kind})"


def _relocations(elf: _Elf) -> Iterator[str]:
    """The places that the loader writes to have to be writable, whatever the flags say."""
    writable = [(each.start, each.start + each.memory) for each in elf.of("PT_LOAD") if each.is_writable]
    bad = [place for place in elf.relocated if not any(first <= place < last for first, last in writable)]
    if bad:
        yield f"{len(bad)} relocations write to what is read-only, the first at {bad[0]:#x}"


def _symbols(elf: _Elf, demands: Demands) -> Iterator[str]:
    unknown = [] if demands.imports is None else sorted(set(elf.taken) - demands.imports)
    if unknown:
        yield f"it calls {', '.join(unknown)}, which is not in the list of Android's functions"
    foreign = sorted(name for name in elf.given if not name.startswith(demands.exports))
    if foreign:
        yield f"it gives {', '.join(foreign[:5])} to other libraries: expected only {', '.join(demands.exports)}*"
    if not elf.given:
        yield "it gives no function to anyone"
