"""The Java interface on this machine's JVM: the same classes and C files as in an AAR, built for the host."""

import shutil
import subprocess
from pathlib import Path

from tools import need

from edgedm.android.build import SOURCES as JNI_SOURCES
from edgedm.android.java_classes import SOURCES, compile_java
from edgedm.lower.codegen import LIBRARY_SOURCES, TEMPLATES
from edgedm.lower.toolchain import WARNINGS

JAVA = Path(__file__).parent / "java"
_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-DEDM_PROBE", "-O0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")


def jdk() -> Path:
    """The folder of the JDK; skips or fails the test where there is none."""
    need("java")
    need("javac")
    return Path(shutil.which("javac")).resolve().parent.parent


def build_library(bundle: Path, name: str, folder: Path, *replaced: tuple[str, str, str]) -> None:
    """libedgedm_NAME.so of a bundle for this machine, by gcc; `replaced` are changes: file, old text, new text."""
    need("gcc")
    include = jdk() / "include"
    work = folder / f"{name}.c"
    shutil.copytree(bundle / "src", work)
    for source in JNI_SOURCES:
        (work / source).parent.mkdir(exist_ok=True)
        shutil.copyfile(TEMPLATES / source, work / source)
    for file, old, new in replaced:
        text = (work / file).read_text()
        assert text.count(old) == 1, f"{file}: {old}"
        (work / file).write_text(text.replace(old, new))
    headers = [
        "-include",
        "android/compat.h",
        "-I",
        ".",
        "-I",
        bundle / "include",
        "-I",
        include,
        "-I",
        include / "linux",
    ]
    sources = [*LIBRARY_SOURCES, "android/jni.c", bundle / "kernels.o"]
    command = ["gcc", *_FLAGS, *WARNINGS, *headers, "-shared", *sources, "-o", folder / f"libedgedm_{name}.so"]
    done = subprocess.run(
        [*map(str, command), "-lm", "-lpthread"], cwd=work, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def build_classes(folder: Path) -> Path:
    """org.edgedm with stand-ins for Android's classes, and the tests' own."""
    compile_java([JAVA / "android", SOURCES], folder / "classes")
    compile_java([JAVA], folder / "check", [folder / "classes"])
    return folder / "check"


def run(classes: Path, libraries: Path, main: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A Java program under -Xcheck:jni."""
    words = ["java", "-Xcheck:jni", f"-Djava.library.path={libraries}", "--add-opens", "java.base/java.io=ALL-UNNAMED"]
    words += [
        "-Xmx256m",
        "-Dfile.encoding=UTF-8",
        "-Dsun.jnu.encoding=UTF-8",
        "-cp",
        f"{classes}:{classes.parent / 'classes'}",
        main,
    ]
    return subprocess.run([*words, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=250)
