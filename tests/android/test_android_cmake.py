"""A bundle for Android in an app's own CMake project; zig with Android's declarations stands in for an NDK."""

import subprocess
import sys

import pytest
import tools

from edgedm.android.abi import ABIS
from edgedm.android.sysroot import compile_flags

ARM64 = ABIS[0]
APP = """cmake_minimum_required(VERSION 3.16)
project(app C)
add_subdirectory({bundle} bundle)
"""
COMPILER = """#!/bin/sh
exec {python} -m ziglang cc -target {triple} {flags} "$@"
"""


@pytest.mark.slow
def test_a_projects_own_build_makes_the_library(arm64_bundle, tmp_path):
    tools.need("cmake")
    compiler = tmp_path / "cc"
    flags = " ".join(f"'{flag}'" for flag in compile_flags(ARM64))
    compiler.write_text(COMPILER.format(python=sys.executable, triple=ARM64.zig_triple, flags=flags))
    compiler.chmod(0o755)
    (tmp_path / "CMakeLists.txt").write_text(APP.format(bundle=arm64_bundle))
    settings = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_C_COMPILER": compiler,
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
        "CMAKE_BUILD_TYPE": "Debug",
    }
    definitions = [f"-D{name}={value}" for name, value in settings.items()]
    _run("cmake", "-S", ".", "-B", "build", *definitions, cwd=tmp_path)
    _run("cmake", "--build", "build", "--target", "edgedm", "-j", "2", cwd=tmp_path)
    (library,) = (tmp_path / "build").rglob("libedgedm.a")
    names = _run("ar", "t", library, cwd=tmp_path).split()
    assert {"session.c.o", "weights.c.o", "kernels.o"} <= set(names)
    assert "jni.c.o" not in names  # Java's side is for an AAR; the app may have a JNI_OnLoad of its own


def _run(*command, cwd):
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
