"""The generated C under other compilers and tools: sanitizers, valgrind, CMake, two models in one program."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny_model
import tools

import edgedm
from edgedm.bundle import load
from edgedm.lower import compile as compile_graph
from edgedm.lower import strips
from edgedm.lower.codegen import PROGRAM_SOURCES
from edgedm.lower.toolchain import WARNINGS

pytestmark = pytest.mark.slow


def _run(*command, cwd: Path, timeout: int = 120) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _build(bundle: Path, folder: Path, *flags: str, main: Path | None = None) -> Path:
    """edgedm-sample, or another program, built by gcc with the bundle's own sources."""
    tools.need("gcc")
    common = ["-std=c11", "-D_GNU_SOURCE", "-DEDM_PROBE", "-g", "-O1", "-ffp-contract=off", *WARNINGS, *flags]
    sources = sorted((bundle / "src").glob("*.c"))
    if main is not None:
        sources = [path for path in sources if path.name not in PROGRAM_SOURCES] + [main]
    command = ["gcc", *common, "-I", bundle / "include", *sources, bundle / "kernels.o", "-o", "program"]
    _run(*command, "-lm", "-lpthread", cwd=folder)
    return folder / "program"


@pytest.mark.parametrize("flags", ["-fsanitize=address,undefined", "-fsanitize=thread"])
def test_sanitizers_find_nothing_and_bits_stay(tiny_bundle, tmp_path, flags):
    program = _build(tiny_bundle, tmp_path, *flags.split(), "-fno-sanitize-recover=all")
    options = ["-n", 5, "--steps", 8, "--sampler", "ddpm", "--label", 1, "--guidance", 2, "--threads", 2]
    _run(program, "--bundle", tiny_bundle, *options, "-o", "other.npy", cwd=tmp_path)
    _run(program, "--bundle", tiny_bundle, *options, "-o", "other.png", cwd=tmp_path)
    _run(program, "--bundle", tiny_bundle, "--self-test", cwd=tmp_path)
    again = ["-n", 5, "--steps", 8, "--sampler", "dpm-solver++", "--start", "other.npy", "--strength", 0.6]
    _run(program, "--bundle", tiny_bundle, *again, "--cores", "big", "--threads", 3, "-o", "third.npy", cwd=tmp_path)
    _run(tiny_bundle / "bin/edgedm-sample", *options, "-o", "ours.npy", cwd=tmp_path)
    assert (tmp_path / "other.npy").read_bytes() == (tmp_path / "ours.npy").read_bytes()


@pytest.mark.parametrize("flags", ["-fsanitize=address,undefined", "-fsanitize=thread"])
def test_sanitizers_find_nothing_in_sessions_on_many_threads(tiny_bundle, tmp_path, flags):
    main = Path(__file__).with_name("many_sessions.c")
    program = _build(tiny_bundle, tmp_path, *flags.split(), "-fno-sanitize-recover=all", main=main)
    assert _run(program, tiny_bundle / "weights.bin", cwd=tmp_path) == "same\n"


@pytest.fixture(scope="module")
def in_strips(tmp_path_factory) -> Path:
    """A model whose attention runs strip by strip, with golden data of its layers."""
    folder = tmp_path_factory.mktemp("strips")
    edgedm.export("zoo:digits-dilatequant-w4a4", folder / "model.onnx", layer_golden=True)
    edgedm.optimize(folder / "model.onnx", folder / "deploy.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "LEAST_BYTES", 0)
        patch.setattr(strips, "STRIP_BYTES", 512)
        edgedm.compile(folder / "deploy.onnx", folder / "model.bundle", cache=False)
    assert any(node.strips for node in load(folder / "model.bundle").manifest.nodes)
    return folder / "model.bundle"


@pytest.mark.parametrize("flags", ["-fsanitize=address,undefined", "-fsanitize=thread"])
def test_sanitizers_find_nothing_in_attention_that_runs_strip_by_strip(in_strips, tmp_path, flags):
    program = _build(in_strips, tmp_path, *flags.split(), "-fno-sanitize-recover=all")
    said = _run(program, "--bundle", in_strips, "--self-test", cwd=tmp_path)
    assert re.search(r"layers \d+, off 0", said)  # each call alone
    _run(program, "--bundle", in_strips, "-n", 1, "--steps", 3, "--threads", 3, "-o", "a.npy", cwd=tmp_path)
    _run(in_strips / "bin/edgedm-sample", "-n", 1, "--steps", 3, "-o", "b.npy", cwd=tmp_path)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_memory_that_no_machine_can_address_is_refused(tiny_bundle, tmp_path):
    """Sums of what a session needs stop at the largest object instead of starting again from 0."""
    shutil.copytree(tiny_bundle, tmp_path / "b")
    model = tmp_path / "b/src/model.c"
    text, changed = re.subn(r"(\.arena_bytes = )\d+", rf"\g<1>{2**64 - 4096}", model.read_text())
    assert changed == 1
    model.write_text(text)
    program = _build(tmp_path / "b", tmp_path)
    done = subprocess.run([program, "--bundle", tiny_bundle], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "no memory for a session" in done.stderr) == (2, True), done.stderr


def test_valgrind_finds_no_leak(tiny_bundle, tmp_path):
    tools.need("valgrind")
    with tiny_model.compiled_for("x86-64-v2") as bundle:  # valgrind knows no AVX-512
        program = bundle / "bin/edgedm-sample"
        command = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", program, "-n", 3, "--steps", 3]
        _run(*command, "--threads", 2, "-o", "a.npy", cwd=tmp_path)


def test_cmake_builds_the_same_program(tiny_bundle, tmp_path):
    tools.need("cmake")
    tools.need("gcc")
    _run("cmake", "-S", tiny_bundle, "-B", "build", cwd=tmp_path)
    _run("cmake", "--build", "build", cwd=tmp_path)
    _run("build/edgedm-sample", "--bundle", tiny_bundle, "-n", 3, "-o", "a.npy", cwd=tmp_path)
    _run(tiny_bundle / "bin/edgedm-sample", "-n", 3, "-o", "b.npy", cwd=tmp_path)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


_USER = """
#include <string.h>
#include "edgedm.h"
int FUNCTION(const char *weights, float *image);
int FUNCTION(const char *weights, float *image) {
  edm_model *model; edm_session *session;
  edm_source source = {.path = weights};
  edm_session_options options = {.threads = 2};
  edm_schedule schedule = {.steps = 5};
  edm_conditions conditions = {.label = -1};
  edm_sample_options draw = {.images = 1};
  int status = edm_open(&source, &model) || edm_session_create(model, &options, &session) ||
               edm_prepare(session, &schedule, &conditions) || edm_sample(session, &draw, image, NULL, NULL);
  if (!status) edm_session_free(session), edm_close(model);
  return status;
}
"""

_MAIN = """
#include <stdio.h>
int first(const char *, float *);
int second(const char *, float *);
int main(int count, char **paths) {
  static float image[2][64];
  if (count != 4 || first(paths[1], image[0]) || second(paths[2], image[1])) return 1;
  FILE *file = fopen(paths[3], "wb");
  return fwrite(image, 1, sizeof image, file) != sizeof image || fclose(file);
}
"""


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory):
    """Another model than the tiny one."""
    folder = tmp_path_factory.mktemp("other")
    changed = {**tiny_model.CONFIG, "noise_schedule": {"num_train_timesteps": 500, "timestep_spacing": "trailing"}}
    compile_graph(tiny_model.write_pair(folder, changed), folder / "other.bundle", steps=5)
    return folder / "other.bundle"


def _check_both(program: Path, bundles: tuple[Path, Path], folder: Path) -> None:
    """The program draws with both models what each draws by itself."""
    assert len({load(bundle).manifest.prefix for bundle in bundles}) == 2
    _run(program, *(bundle / "weights.bin" for bundle in bundles), "out.bin", cwd=folder)
    expected = b""
    for bundle in bundles:
        _run(bundle / "bin/edgedm-sample", "-n", 1, "--steps", 5, "-o", "one.npy", cwd=folder)
        expected += (folder / "one.npy").read_bytes()[128:]
    assert (folder / "out.bin").read_bytes() == expected


def test_two_models_link_into_one_program(tiny_bundle, other_bundle, tmp_path):
    tools.need("gcc")
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-ffp-contract=off", "-DEDM_PROBE"]
    objects = []
    for name, bundle in (("first", tiny_bundle), ("second", other_bundle)):
        (tmp_path / f"{name}.c").write_text(_USER)
        sources = [path for path in (bundle / "src").glob("*.c") if path.name not in PROGRAM_SOURCES]
        for source in [*sources, tmp_path / f"{name}.c"]:
            made = tmp_path / f"{name}_{source.stem}.o"
            _run("gcc", *flags, f"-DFUNCTION={name}", "-I", bundle / "include", "-c", source, "-o", made, cwd=tmp_path)
            objects.append(made)
        objects.append(bundle / "kernels.o")
    (tmp_path / "both.c").write_text(_MAIN)
    _run("gcc", *flags, "both.c", *objects, "-lm", "-lpthread", "-o", "both", cwd=tmp_path)
    _check_both(tmp_path / "both", (tiny_bundle, other_bundle), tmp_path)


_PROJECT = """
cmake_minimum_required(VERSION 3.16)
project(both C)
add_subdirectory({first} first.bundle)
add_subdirectory({second} second.bundle)
add_library(first STATIC first.c)
target_link_libraries(first PRIVATE edgedm_{first_prefix})
add_library(second STATIC second.c)
target_link_libraries(second PRIVATE edgedm_{second_prefix})
add_executable(both both.c)
target_link_libraries(both PRIVATE first second)
"""


def test_a_cmake_project_takes_two_bundles(tiny_bundle, other_bundle, tmp_path):
    tools.need("cmake")
    tools.need("gcc")
    for name in ("first", "second"):
        (tmp_path / f"{name}.c").write_text(_USER.replace("FUNCTION", name))
    (tmp_path / "both.c").write_text(_MAIN)
    prefixes = [load(bundle).manifest.prefix.split("_")[1] for bundle in (tiny_bundle, other_bundle)]
    project = _PROJECT.format(
        first=tiny_bundle, second=other_bundle, first_prefix=prefixes[0], second_prefix=prefixes[1]
    )
    (tmp_path / "CMakeLists.txt").write_text(project)
    _run("cmake", "-S", ".", "-B", "build", cwd=tmp_path)
    _run("cmake", "--build", "build", cwd=tmp_path)
    _check_both(tmp_path / "build/both", (tiny_bundle, other_bundle), tmp_path)


@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3", "-Os"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_no_compiler_warns_at_any_level(tiny_bundle, tmp_path, compiler, level):
    tools.need(compiler)
    flags = ["-std=c11", "-D_GNU_SOURCE", "-DEDM_PROBE", "-ffp-contract=off", *WARNINGS, level]
    sources = sorted((tiny_bundle / "src").glob("*.c"))
    _run(compiler, *flags, "-I", tiny_bundle / "include", "-c", *sources, cwd=tmp_path)
