"""org.edgedm, the Java interface of a bundle, compiled."""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgedm.android.archive import archive
from edgedm.errors import ToolchainError
from edgedm.targets.android import javac

SOURCES = Path(__file__).parent / "java"
STUBS = Path(__file__).parent / "stubs"
"""Signatures of the few Android classes that the sources use, so that no Android SDK is needed."""

_RELEASE = "8"  # what every Android build takes


def compile_java(sources: Sequence[Path], output: Path, classes: Sequence[Path] = ()) -> None:
    """Compile all Java files below the folders `sources` into `output`, against the folders `classes`.

    Raises ToolchainError without a JDK, or for what it refuses; warnings count as such.
    """
    found = javac()
    if found is None:
        raise ToolchainError(
            "javac is missing, which an AAR's classes are compiled with: install a JDK (Debian's "
            "default-jdk-headless, or what Android Studio brings) and let JAVA_HOME or PATH lead to it"
        )
    files = [str(path) for folder in sources for path in sorted(folder.rglob("*.java"))]
    path = ["-classpath", ":".join(map(str, classes))] if classes else []
    command = [found, "--release", _RELEASE, "-Xlint:all,-options", "-Werror", *path, "-d", str(output), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolchainError(f"javac failed:\n{(done.stderr or done.stdout).strip()[-4000:]}")


def classes_jar() -> bytes:
    """classes.jar of an AAR."""
    with tempfile.TemporaryDirectory(prefix="edgedm-") as scratch:
        folder = Path(scratch)
        compile_java([STUBS], folder / "android")
        compile_java([SOURCES], folder / "edgedm", [folder / "android"])
        classes = sorted((folder / "edgedm").rglob("*.class"))
        files = {path.relative_to(folder / "edgedm").as_posix(): path.read_bytes() for path in classes}
    return archive({"META-INF/MANIFEST.MF": b"Manifest-Version: 1.0\r\n\r\n", **files})
