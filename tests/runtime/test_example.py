"""examples/draw.c, found by CMake and by pkg-config, draws what Python draws."""

import os
import subprocess
from pathlib import Path

import pytest
import tools

from edgedm.images import encode_png, grid
from edgedm.runtime import LocalRunner

EXAMPLES = Path(__file__).parents[2] / "examples"


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
    warnings = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"]
    rpath = f"-Wl,-rpath,{bundle / 'lib'}"
    _run("gcc", *warnings, EXAMPLES / "draw.c", "-o", "draw", *flags, rpath, cwd=folder)
    return folder / "draw"


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


def _pixels(data: bytes) -> bytes:
    from io import BytesIO

    from PIL import Image

    return Image.open(BytesIO(data)).tobytes()
