"""`edgedm package`: bundles for Android -> an AAR, the library that an app's build takes as it is.

An AAR holds the Java classes of org.edgedm once, and for every model a native library an ABI and its weights as assets.
"""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import edgedm
from edgedm import progress
from edgedm.android import linker
from edgedm.android.abi import Abi, abi_of
from edgedm.android.archive import archive
from edgedm.android.java_classes import classes_jar
from edgedm.atomic import atomic_file
from edgedm.bundle import Bundle, load
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.outcome import Outcome
from edgedm.targets import resolve
from edgedm.targets.android import API_LEVEL

SUFFIX = ".aar"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_JAVA_WORD = re.compile(  # those that look like names
    r"abstract|assert|boolean|break|byte|case|catch|char|class|const|continue|default|do|double|else|enum|extends"
    r"|false|final|finally|float|for|goto|if|implements|import|instanceof|int|interface|long|native|new|null|package"
    r"|private|protected|public|return|short|static|strictfp|super|switch|synchronized|this|throw|throws|transient"
    r"|true|try|void|volatile|while"
)
_SAME = ("image_shape", "decoded_shape", "condition_shape", "classes", "null_class", "schedule", "config")
"""What the bundles of one model agree about, whatever they are compiled for."""

_MANIFEST = """<?xml version="1.0" encoding="utf-8"?>
<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="org.edgedm.{name}">
    <uses-sdk android:minSdkVersion="{level}" />
</manifest>
"""


@dataclass(frozen=True)
class _Part:
    """A model for one ABI."""

    name: str
    abi: Abi
    bundle: Bundle

    @property
    def library(self) -> str:
        """File name of its library."""
        return f"libedgedm_{self.name}.so"


def package(bundles: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> Outcome:
    """Write the AAR `output` with the models of `bundles`: NAME=BUNDLE each, or BUNDLE for one called as the AAR.

    Bundles of one name are one model for several ABIs. Raises UnsupportedError for a bundle that is not for Android, a
    name that Java would not take or an ABI twice; InvalidModelError for an altered bundle, one of another edgedm, or
    different models under one name; ToolchainError without a JDK, or for a library that Android would refuse.
    Figures: `bytes.aar`, `bytes.classes`, `bytes.library.<name>.<abi>`, `bytes.weights.<name>`.
    """
    output = Path(output)
    if output.suffix != SUFFIX:
        raise UnsupportedError(f"{output}: expected a name that ends in {SUFFIX}, which is the one kind of package")
    _check_package(output)
    parts = _parts(bundles, output.stem)
    progress.stage("compiling the Java classes")
    files = {"R.txt": b"", "classes.jar": classes_jar(), "proguard.txt": _proguard()}
    files["AndroidManifest.xml"] = _MANIFEST.format(name=output.stem, level=API_LEVEL).encode()
    figures = {"bytes.classes": float(len(files["classes.jar"]))}
    for part in parts:
        progress.stage(f"linking {part.library} for {part.abi.name}")
        data = _linked(part)
        files[f"jni/{part.abi.name}/{part.library}"] = data
        figures[f"bytes.library.{part.name}.{part.abi.name}"] = float(len(data))
    for name in dict.fromkeys(part.name for part in parts):
        assets = _assets([part for part in parts if part.name == name])
        files |= assets
        figures[f"bytes.weights.{name}"] = float(sum(map(len, assets.values())))
    data = archive(files)
    with atomic_file(output) as path:
        path.write_bytes(data)
    models = {part.name: [each.abi.name for each in parts if each.name == part.name] for part in parts}
    return Outcome(True, {"bytes.aar": float(len(data)), **figures}, {"written": [str(output)], "models": models})


def _parts(bundles: Sequence[str | os.PathLike[str]], stem: str) -> list[_Part]:
    parts: dict[tuple[str, str], _Part] = {}
    if not bundles:
        raise UnsupportedError("package: expected one bundle or more")
    for given in (str(each) for each in bundles):
        before, equals, after = given.partition("=")
        name, path = (before, after) if equals else (stem, given)
        _check_name(name, given)
        bundle = load(path)
        part = _Part(name, abi_of(resolve(bundle.manifest.target.name)), bundle)
        other = parts.setdefault((name, part.abi.name), part)
        if other is not part:
            raise UnsupportedError(
                f"{path} and {other.bundle.path}: both are {name!r} for {part.abi.name}; compile variants of one ABI "
                "into one bundle (edgedm compile --target A,B), or name different models differently"
            )
        _check(part, next(each for each in parts.values() if each.name == name))
    return list(parts.values())


def _check_name(name: str, given: str) -> None:
    if not _NAME.fullmatch(name):
        raise UnsupportedError(
            f"{given}: Java and Android would take {name!r} for no name; expected small letters, digits and _, a "
            "letter first"
        )


def _check_package(output: Path) -> None:
    """The AAR's name is the last part of its Java package, whatever its models are called."""
    _check_name(output.stem, str(output))
    if _JAVA_WORD.fullmatch(output.stem):
        raise UnsupportedError(
            f"{output}: Java would take {output.stem!r} for a word of its own in the package org.edgedm.{output.stem}; "
            "call the file something else"
        )


def _check(part: _Part, first: _Part) -> None:
    manifest = part.bundle.manifest
    if manifest.edgedm != edgedm.__version__:
        raise InvalidModelError(
            f"{part.bundle.path}: was compiled by edgedm {manifest.edgedm}, this is {edgedm.__version__}; compile it "
            "again"
        )
    if linker.MERGED not in manifest.files:
        raise InvalidModelError(
            f"{part.bundle.path}: has no {linker.MERGED}, which the library is linked of under the app's name for it; "
            "compile it again"
        )
    for field in _SAME:
        if getattr(manifest, field) != getattr(first.bundle.manifest, field):
            raise InvalidModelError(
                f"{part.bundle.path} and {first.bundle.path}: differ in {field}, so they are not one model "
                f"{part.name!r}; name them differently"
            )


def _linked(part: _Part) -> bytes:
    """The library, linked again under its file's name, which Android's loader knows it by."""
    with tempfile.TemporaryDirectory(prefix="edgedm-") as scratch:
        objects = Path(scratch) / Path(linker.MERGED).name
        objects.write_bytes((part.bundle.path / linker.MERGED).read_bytes())
        prefix = part.bundle.manifest.prefix
        return linker.link_library([objects.name], Path(scratch), part.abi, part.library, prefix)


def _assets(parts: Sequence[_Part]) -> Mapping[str, bytes]:
    """The weights of one model: those that most ABIs have as `all`, and a file for each of the others."""
    weights = {part.abi.name: part.bundle.weights.read_bytes() for part in parts}
    (common, _), *_ = Counter(weights.values()).most_common(1)
    own = {abi: data for abi, data in weights.items() if data != common}
    return {f"assets/edgedm/{parts[0].name}/{file}.bin": data for file, data in {**own, "all": common}.items()}


def _proguard() -> bytes:
    return (Path(__file__).parent / "proguard.txt").read_bytes()
