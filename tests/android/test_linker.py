"""What builds Android's libraries: zig with this package's headers, or an NDK, of which a stand-in is tried here."""

import os
import shutil
import sys

import pytest
import tiny_model

from edgedm.android import linker
from edgedm.android.abi import ABIS
from edgedm.android.sysroot import compile_flags, functions_of, imports, sysroot
from edgedm.errors import ToolchainError
from edgedm.lower import toolchain
from edgedm.lower.codegen import LIBRARY_SOURCES
from edgedm.targets.android import NDK

ARM64 = ABIS[0]
CODE = """
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
static _Thread_local int mine;
__attribute__((visibility("default"))) int edm_try(const char *path, unsigned long long a, unsigned long long b);
int edm_try(const char *path, unsigned long long a, unsigned long long b) {
  FILE *file = fopen(path, "rb");
  if (!file) return errno;
  void *memory = aligned_alloc(64, (size_t)(a / b));
  mine += memory != NULL;
  free(memory);
  return fclose(file) + mine;
}
"""
# What an NDK's clang is asked for, done by zig.
CLANG = """#!{python}
import subprocess, sys
from edgedm.android.abi import ABIS
from edgedm.android.sysroot import compile_flags, sysroot
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    print(*arguments, file=log)
target = next(each for each in arguments if each.startswith("--target="))
abi = next(each for each in ABIS if target == "--target=" + each.ndk_triple)
rest = [each for each in arguments if each != target]
zig = [sys.executable, "-m", "ziglang"]
if "-c" in rest:
    sys.exit(subprocess.call([*zig, "cc", "-target", abi.zig_triple, *compile_flags(abi), *rest]))
root = sysroot(abi)
flat = [each for word in rest for each in (word[4:].split(",") if word.startswith("-Wl,") else [word])]
libraries = [str(root / "runtime.o"), "-L", str(root), "-lc"]
sys.exit(subprocess.call([*zig, "ld.lld", "-m", abi.emulation, *flat, *libraries]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A scratch folder with a C file, as `write_library` fills one."""
    from edgedm.lower.codegen import TEMPLATES

    monkeypatch.delenv(NDK, raising=False)
    (tmp_path / "android").mkdir()
    (tmp_path / "android/compat.h").write_text((TEMPLATES / "android/compat.h").read_text())
    (tmp_path / "try.c").write_text(CODE)
    return tmp_path


def test_the_runtime_takes_no_more_of_androids_headers_than_there_is(folder):
    """Those that pip packages stand in for hold what the runtime uses, and no more."""
    bundle = tiny_model.folder() / "model.bundle"
    for part in ("src", "include"):
        shutil.copytree(bundle / part, folder, dirs_exist_ok=True)
    assert len(linker.compile_objects(LIBRARY_SOURCES, folder, ABIS[0], ["-DEDM_PROBE"])) > 10


@pytest.fixture
def ndk(tmp_path, monkeypatch):
    """A stand-in for an NDK; returns what its clang was called with, a line a call."""
    place = tmp_path / "ndk"
    clang = place / "toolchains/llvm/prebuilt/linux-x86_64/bin/clang"
    clang.parent.mkdir(parents=True)
    clang.write_text(CLANG.format(python=sys.executable, log=str(tmp_path / "log")))
    clang.chmod(0o755)
    (place / "source.properties").write_text("Pkg.Desc = Android NDK\nPkg.Revision = 27.2.12479018\n")
    return place, tmp_path / "log"


def linked(folder, abi, name="libtry.so"):
    objects = linker.compile_objects(["try.c"], folder, abi, ["-DEDM_PROBE"])
    return linker.link_library(objects, folder, abi, name, "edm_")


@pytest.mark.parametrize("abi", ABIS, ids=lambda abi: abi.name)
def test_a_library_of_every_abi_stands_on_androids_functions_alone(folder, abi):
    """64-bit division and a variable of each thread included, for which other systems have more libraries."""
    assert linked(folder, abi)[:4] == b"\x7fELF"


@pytest.mark.parametrize("abi", ABIS, ids=lambda abi: abi.name)
def test_types_have_the_sizes_that_bionic_gives_them(folder, abi):
    wide = abi.bits == 64
    sizes = {
        "pthread_mutex_t": 40 if wide else 4,
        "pthread_cond_t": 48 if wide else 4,
        "pthread_t": abi.bits // 8,
        "time_t": abi.bits // 8,
        "struct stat": {"aarch64": 128, "x86": 144, "arm": 104}[abi.isa],
        "off_t": 8,
    }
    size_at = {"aarch64": 48, "x86": 48, "arm": 48}[abi.isa]  # of struct stat's st_size
    text = "".join(f'_Static_assert(sizeof({name}) == {size}, "{name}");\n' for name, size in sizes.items())
    text += f'_Static_assert(__builtin_offsetof(struct stat, st_size) == {size_at}, "st_size");\n'
    (folder / "try.c").write_text("#include <pthread.h>\n#include <sys/stat.h>\n" + text)
    linker.compile_objects(["try.c"], folder, abi, [])


def test_a_function_that_android_24_lacks_is_refused_by_name(folder):
    (folder / "try.c").write_text(
        'int getentropy(void *, unsigned long);\n__attribute__((visibility("default"))) int '
        "edm_try(void);\nint edm_try(void) { return getentropy(0, 0); }\n"
    )
    with pytest.raises(ToolchainError, match="undefined symbol: getentropy"):
        linked(folder, ARM64)


def test_a_library_without_a_function_of_its_own_is_refused(folder):
    (folder / "try.c").write_text("int unseen(void);\nint unseen(void) { return 1; }\n")
    with pytest.raises(ToolchainError, match=r"libtry.so: Android would refuse it: it gives no function to anyone"):
        linked(folder, ARM64)


def test_what_it_is_linked_with_is_made_once(monkeypatch):
    made = sysroot(ARM64)
    assert {"libc.so", "libm.so", "libdl.so", "runtime.o"} == {path.name for path in made.iterdir()}

    def refuse(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(toolchain, "zig", refuse)
    assert sysroot(ARM64) == made
    assert "memcpy" in functions_of("libc.so") <= imports()
    assert "aligned_alloc" not in imports()


def test_an_ndk_that_is_named_does_the_work(folder, ndk, monkeypatch):
    place, log = ndk
    assert linker.toolchain_name().startswith("zig ")
    by_zig = linked(folder, ARM64)
    assert not log.exists()
    monkeypatch.setenv(NDK, str(place))
    assert linker.toolchain_name() == "ndk 27.2.12479018"
    assert linked(folder, ARM64)[:4] == by_zig[:4]
    compiled, linked_by = log.read_text().splitlines()
    assert "--target=aarch64-linux-android24" in compiled
    assert "-include android/compat.h" in compiled
    assert "-Werror" not in compiled
    assert "-nostdinc" not in compiled
    assert "-Wl,max-page-size=16384" in linked_by
    assert "-Wl,-soname -Wl,libtry.so" in linked_by


def test_an_ndk_that_is_none_or_refuses_is_an_error(folder, ndk, monkeypatch):
    place, _ = ndk
    monkeypatch.setenv(NDK, str(folder))
    with pytest.raises(ToolchainError, match=r"clang is missing; name the folder of an NDK"):
        linked(folder, ARM64)
    monkeypatch.setenv(NDK, str(place))
    (folder / "try.c").write_text("this is no C\n")
    with pytest.raises(ToolchainError, match="the NDK's clang failed"):
        linked(folder, ARM64)


def test_flags_name_no_folder_that_is_not_there():
    for abi in ABIS:
        flags = compile_flags(abi)
        folders = [flags[number + 1] for number, flag in enumerate(flags) if flag == "-isystem"]
        assert len(folders) == 4
        assert all(os.path.isdir(each) for each in folders)
