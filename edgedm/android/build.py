"""The Android part of a bundle: its library, the objects to link it again under another name, checked programs."""

import shutil
from pathlib import Path

from edgedm.android import elf_lint, linker
from edgedm.android.abi import abi_of
from edgedm.bundle.store import LIBRARY, PROBE, SAMPLER
from edgedm.lower import toolchain
from edgedm.lower.codegen import LIBRARY_SOURCES, TEMPLATES
from edgedm.targets import Target

SOURCES = ("android/jni.c", "android/compat.h")
"""Of the runtime's templates, those that only Android's library is made of."""


def write_library(bundle: Path, work: Path, prefix: str, target: Target) -> None:
    """Write `lib/libedgedm.so` and its objects in one file into `bundle`, after its programs; check all of them.

    `work` is a scratch folder with the bundle's C files and kernels.o. Raises ToolchainError for what cannot be built
    or what Android would refuse.
    """
    abi, name = abi_of(target), Path(LIBRARY).name
    for folder in (bundle / "src", work):
        for source in SOURCES:
            (folder / source).parent.mkdir(exist_ok=True)
            shutil.copyfile(TEMPLATES / source, folder / source)
    sources = (*LIBRARY_SOURCES, *(each for each in SOURCES if each.endswith(".c")))
    objects = linker.compile_objects(sources, work, abi, ["-DEDM_PROBE"])
    merged = Path(linker.MERGED).name
    toolchain.merge_objects([*objects, "kernels.o"], merged, work)
    shutil.copyfile(work / merged, bundle / linker.MERGED)
    (bundle / LIBRARY).write_bytes(linker.link_library([merged], work, abi, name, prefix))
    for program in (SAMPLER, PROBE):
        elf_lint.require(program, elf_lint.lint_program((bundle / program).read_bytes(), abi))
