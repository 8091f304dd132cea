"""The C programs of examples/ and of the README, by CMake and by pkg-config, draw what Python draws."""

import contextlib
import os
import re
import subprocess
from pathlib import Path

import pytest
import tiny_model
import tools

from edgedm import __version__
from edgedm.images import encode_png, grid
from edgedm.lower.toolchain import WARNINGS
from edgedm.runtime import LocalRunner

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
STRICT = ("-std=c11", *WARNINGS)


def _run(*command, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _by_cmake(bundle: Path, folder: Path) -> Path:
    tools.need("cmake")
    tools.need("gcc")
    _run("cmake", "-S", EXAMPLES, "-B", "build", f"-DCMAKE_PREFIX_PATH={bundle}", cwd=folder)
    _run("cmake", "--build", "build", cwd=folder)
    return folder / "build" / "draw"


def _by_pkg_config(bundle: Path, folder: Path) -> Path:
    tools.need("pkg-config")
    tools.need("gcc")
    flags = _run(
        "pkg-config", "--cflags", "--libs", "edgedm", cwd=folder, PKG_CONFIG_PATH=str(bundle / "lib/pkgconfig")
    ).split()
    _run("gcc", *STRICT, EXAMPLES / "draw.c", "-o", "draw", *flags, f"-Wl,-rpath,{bundle / 'lib'}", cwd=folder)
    return folder / "draw"


@pytest.mark.slow
def test_cmake_passes_a_bundle_for_another_machine_over(tmp_path):
    tools.need("cmake")
    with tiny_model.compiled_for("aarch64") as bundle:
        with pytest.raises(AssertionError, match="for aarch64"):
            _run("cmake", "-S", EXAMPLES, "-B", "build", f"-DCMAKE_PREFIX_PATH={bundle}", cwd=tmp_path)
        with pytest.raises(AssertionError, match=r"for\s+aarch64, but this project is built for x86_64"):
            _run("cmake", "-S", bundle, "-B", "its-own", cwd=tmp_path)


@pytest.mark.parametrize(("asked", "found"), [(f"{__version__} EXACT", True), (__version__, True), ("99.1", False)])
def test_cmake_finds_the_version_that_is_there(tiny_bundle, tmp_path, asked, found):
    tools.need("cmake")
    lines = ("cmake_minimum_required(VERSION 3.16)", "project(app C)", f"find_package(edgedm {asked} REQUIRED)")
    (tmp_path / "CMakeLists.txt").write_text("\n".join(lines))
    with contextlib.nullcontext() if found else pytest.raises(AssertionError, match="version"):
        _run("cmake", "-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={tiny_bundle}", cwd=tmp_path)


@pytest.mark.parametrize("build", [_by_cmake, _by_pkg_config])
def test_the_example_draws_what_python_draws(tiny_bundle, tmp_path, build):
    program = build(tiny_bundle, tmp_path)
    said = _run(program, tiny_bundle, 1, "out.png", cwd=tmp_path)
    assert said.count("steps left") == 20
    with LocalRunner(tiny_bundle) as runner:
        runner.prepare(20, "dpm-solver++", label=1)
        want = runner.sample(1)
    ours = (tmp_path / "out.png").read_bytes()
    assert _pixels(ours) == _pixels(encode_png(grid(want)))


@pytest.mark.slow
def test_the_program_in_the_readme_draws_what_python_draws(digits_bundle, tmp_path):
    """Built and run by the commands that follow it there."""
    tools.need("pkg-config")
    tools.need("gcc")
    text = (ROOT / "README.md").read_text()
    ((program, commands),) = re.findall(r"^```c\n(.*?)^```\n+```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "four.c").write_text(program)
    (tmp_path / "model.bundle").symlink_to(digits_bundle)
    _run("gcc", *STRICT, "-fsyntax-only", "-I", digits_bundle / "include", "four.c", cwd=tmp_path)
    _run("sh", "-c", commands, cwd=tmp_path)
    with LocalRunner(digits_bundle) as runner:
        runner.prepare(20, "dpm-solver++", label=1, guidance=1.5)
        want = runner.sample(4)
    assert _pixels((tmp_path / "four.png").read_bytes()) == _pixels(encode_png(grid(want)))


def _pixels(data: bytes) -> bytes:
    from io import BytesIO

    from PIL import Image

    return Image.open(BytesIO(data)).tobytes()
