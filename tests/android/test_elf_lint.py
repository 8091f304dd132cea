"""What the check of Android's libraries finds: libraries with a fault each, made by the linker or a changed byte."""

import io
import struct
from dataclasses import replace

import pytest
from elftools.elf.elffile import ELFFile

from edgedm.android.abi import ABIS
from edgedm.android.elf_lint import Demands, lint_library, lint_program, require
from edgedm.errors import ToolchainError
from edgedm.lower import toolchain

ARM64, ARMV7, X86_64 = ABIS
_DEMANDS = Demands(ARM64, "libmodel.so", frozenset({"malloc"}), ("edm_",))
_CODE = """
extern void *malloc(unsigned long);
static int count, *volatile place = &count;
__attribute__((visibility("default"))) void *edm_first(void) { return ++*place ? malloc(1) : 0; }
"""
_PAGES = ("-z", "max-page-size=16384")
_GOOD = (
    *_PAGES,
    "-z",
    "noexecstack",
    "-z",
    "relro",
    "-z",
    "now",
    "-soname",
    "libmodel.so",
    "-shared",
    "-L",
    ".",
    "-lc",
)


class Linker:
    """Makes libraries of one C file."""

    def __init__(self, folder):
        self.folder = folder
        for library in ("libc", "libstdc++"):
            self._compile(f"{library}.c", "void malloc(void) {} void strange(void) {}")
            self._lld(["-shared", "-soname", f"{library}.so", f"{library}.o", "-o", f"{library}.so"])

    def _compile(self, name, text, *flags, target=ARM64.zig_triple):
        (self.folder / name).write_text(text)
        flags = ("-fPIC", "-fvisibility=hidden", "-w", "-fno-builtin", "-ffreestanding", "-fno-stack-protector", *flags)
        made = name.replace(".c", ".o")
        toolchain.zig(
            [
                "cc",
                "-target",
                target,
                "-O1",
                "-g0",
                *flags,
                "-fvisibility=default" if "lib" in name else "-O1",
                "-c",
                name,
                "-o",
                made,
            ],
            self.folder,
        )

    def _lld(self, arguments, emulation=ARM64.emulation):
        toolchain.zig(["ld.lld", "-m", emulation, *arguments], self.folder)

    def library(self, link=_GOOD, code=_CODE, flags=(), abi=ARM64):
        self._compile("model.c", code, *flags, target=abi.zig_triple)
        self._lld(["model.o", *link, "-o", "model.so"], abi.emulation)
        return (self.folder / "model.so").read_bytes()


@pytest.fixture(scope="module")
def linker(tmp_path_factory):
    return Linker(tmp_path_factory.mktemp("linker"))


@pytest.fixture(scope="module")
def good(linker):
    return linker.library()


def without(flags, *gone):
    return tuple(flag for flag in flags if flag not in gone)


def test_nothing_is_found_in_a_good_library(good):
    assert lint_library(good, _DEMANDS) == []
    require("libmodel.so", [])


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"link": (*_GOOD, "-z", "max-page-size=4096")}, "aligned to 4096 bytes"),
        ({"link": without(_GOOD, "-soname", "libmodel.so")}, "it has no name: expected 'libmodel.so'"),
        ({"link": (*_GOOD, "-soname", "libother.so")}, "its name is 'libother.so'"),
        ({"link": (*_GOOD, "-z", "execstack")}, "its stack is executable"),
        ({"link": (*_GOOD, "--no-as-needed", "-l:libstdc++.so")}, "it needs libstdc++.so"),
        ({"link": (*_GOOD, "-rpath", "/system/lib64")}, "a search path"),
        ({"link": (*_GOOD, "--pack-dyn-relocs=relr")}, "packed relocations"),
        ({"link": (*_GOOD, "-z", "separate-code", "--omagic")}, "may be written and executed"),
        ({"code": _CODE + "_Thread_local int edm_own = 1;", "flags": ("-fno-emulated-tls", "-fvisibility=default")},
         "thread-local storage"),
        ({"code": _CODE + 'extern void strange(void); __attribute__((visibility("default"))) void edm_more(void) '
          "{ strange(); }"}, "it calls strange"),
        ({"code": _CODE + '__attribute__((visibility("default"))) void other(void) {}'}, "it gives other to other"),
        ({"code": "static int own;"}, "it gives no function to anyone"),
    ],
)  # fmt: skip
def test_a_fault_that_a_linker_makes_is_named(linker, changed, finding):
    found = lint_library(linker.library(**changed), _DEMANDS)
    assert any(finding in each for each in found), found


def test_code_that_has_to_be_changed_is_found(linker):
    """Addresses in what is read-only; the linker was told to allow it."""
    code = _CODE + '__asm__(".section .text.far,\\"ax\\"\\n.quad edm_first\\n");'
    found = lint_library(linker.library(link=(*_GOOD, "-z", "notext"), code=code), _DEMANDS)
    assert any("has to be changed when it is loaded" in each for each in found), found
    assert any("relocations write to what is read-only" in each for each in found), found


def test_another_machine_is_told_apart(linker, good):
    assert any("EM_AARCH64 with 64 bits" in each for each in lint_library(good, replace(_DEMANDS, abi=X86_64)))
    assert any("EM_ARM with 32" in each for each in lint_library(good, replace(_DEMANDS, abi=ARMV7)))


def test_floats_in_vector_registers_are_found_on_arm(linker):
    soft = linker.library(
        link=_GOOD[:-3],
        code='__attribute__((visibility("default"))) float edm_f(float x) { return x; }',
        flags=ARMV7.c_flags,
        abi=ARMV7,
    )
    demands = replace(_DEMANDS, abi=ARMV7)
    assert lint_library(soft, demands) == []
    (flags,) = struct.unpack_from("<I", soft, 36)
    hard = bytearray(soft)
    struct.pack_into("<I", hard, 36, flags | 0x400)
    assert any("floats in vector registers" in each for each in lint_library(bytes(hard), demands))


def _headers(data, kind):
    """Offsets of the program headers of a kind."""
    file = ELFFile(io.BytesIO(data))
    places = [file["e_phoff"] + number * file["e_phentsize"] for number in range(file.num_segments())]
    return [place for place, segment in zip(places, file.iter_segments(), strict=True) if segment["p_type"] == kind]


def test_what_no_linker_makes_is_found_too(good):
    data = bytearray(good)
    load = _headers(good, "PT_LOAD")[1]
    struct.pack_into("<Q", data, load + 16, struct.unpack_from("<Q", data, load + 16)[0] + 4096)  # its address
    assert any("which no page maps" in each for each in lint_library(bytes(data), _DEMANDS))
    data = bytearray(good)
    relro = _headers(good, "PT_GNU_RELRO")[0]
    struct.pack_into("<Q", data, relro + 40, struct.unpack_from("<Q", data, relro + 40)[0] - 64)  # its size in memory
    assert any("becomes read-only with its page" in each for each in lint_library(bytes(data), _DEMANDS))
    data = bytearray(good)
    struct.pack_into("<I", data, _headers(good, "PT_GNU_STACK")[0], 0)
    assert any("its stack is executable" in each for each in lint_library(bytes(data), _DEMANDS))
    data = bytearray(good)
    struct.pack_into("<I", data, _headers(good, "PT_GNU_STACK")[0], 3)
    assert "it asks for an interpreter, as programs do" in lint_library(bytes(data), _DEMANDS)
    data = bytearray(good)
    struct.pack_into("<I", data, _headers(good, "PT_DYNAMIC")[0], 0)
    assert "it has no dynamic section" in lint_library(bytes(data), _DEMANDS)


def test_a_program_is_static_and_aligned(linker, good):
    linker._compile("main.c", "void _start(void) {}")
    linker._lld(["main.o", "-static", "-z", "noexecstack", *_PAGES, "-o", "main"])
    program = (linker.folder / "main").read_bytes()
    assert lint_program(program, ARM64) == []
    assert any("expected EM_X86_64" in each for each in lint_program(program, X86_64))
    linker._lld(["main.o", "-static", "-z", "noexecstack", "-z", "max-page-size=4096", "-o", "small"])
    assert any("aligned to 4096" in each for each in lint_program((linker.folder / "small").read_bytes(), ARM64))
    linker._lld(
        [
            "main.o",
            "-pie",
            "--no-as-needed",
            "-L",
            ".",
            "-lc",
            "-dynamic-linker",
            "/system/bin/linker64",
            *_PAGES,
            "-o",
            "dynamic",
        ]
    )
    found = lint_program((linker.folder / "dynamic").read_bytes(), ARM64)
    assert {"it asks for an interpreter: expected a static program", "it needs libc.so: expected a static program"} <= {
        *found
    }


@pytest.mark.parametrize("data", [b"", b"MZ", b"\x7fELF", b"\x7fELF" + b"\xff" * 60, b"\x7fELF\x02\x01" + bytes(58)])
def test_what_is_no_elf_file_is_refused(data):
    assert lint_library(data, _DEMANDS) != []
    assert lint_program(data, ARM64) != []


def test_a_damaged_file_is_refused_whatever_byte_it_is(good):
    """Every finding is in words: nothing escapes, wherever a length or an offset points."""
    for place in range(64 + 9 * 56):  # the file's header and those of its segments
        data = bytearray(good)
        data[place] = (0x00, 0x7F, 0xFF)[place % 3]
        assert all(isinstance(each, str) for each in lint_library(bytes(data), _DEMANDS))
    for length in range(0, len(good), 97):
        assert lint_library(good[:length], _DEMANDS) != []


def test_a_mistake_of_ours_is_not_the_files(good):
    with pytest.raises(TypeError):
        lint_library(good, replace(_DEMANDS, imports=("malloc", "free")))


def test_the_error_names_the_file_and_every_finding():
    with pytest.raises(ToolchainError, match=r"jni/libx.so: Android would refuse it: one; another"):
        require("jni/libx.so", ["one", "another"])
