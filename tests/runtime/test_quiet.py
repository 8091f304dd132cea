"""Drawing asks for no memory and runs kernels and callbacks with no lock held; threads change no bit of an image."""

import re
import subprocess
from pathlib import Path

import pytest
import tiny_latent
import tools

from edgedm.bundle import load
from edgedm.lower.codegen import PROGRAM_SOURCES
from edgedm.lower.objects import SYMBOL

ALLOCATIONS = Path(__file__).with_name("allocations.c")
QUIET, LOADER = Path(__file__).with_name("quiet.c"), Path(__file__).with_name("loader.c")
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-DEDM_PROBE", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
WRAPPED = ("pthread_mutex_lock", "pthread_mutex_unlock", "TVMBackendParallelLaunch")
LOCKS = re.compile(r"\b((?:pthread_(?:mutex|rwlock|spin|barrier)|sem|mtx)_\w+)")


def build(
    bundle: Path, folder: Path, change: tuple[str, dict[str, str]] | None = None, loaded: bool = False
) -> list[Path]:
    """The command of quiet.c with the bundle's library sources: one program, or a library that a program loads.

    `change`: a source's name, and what became of texts in it.
    """
    tools.need("gcc")
    kernels = sorted({f"{SYMBOL}{node.kernel}" for node in load(bundle).manifest.nodes})
    (folder / "kernels.h").write_text("".join(f"KERNEL({name})\n" for name in kernels))
    sources = [path for path in sorted((bundle / "src").glob("*.c")) if path.name not in PROGRAM_SOURCES]
    if change is not None:
        name, texts = change
        text = (bundle / "src" / name).read_text()
        for old, new in texts.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (folder / name).write_text(text)
        sources = [folder / name if path.name == name else path for path in sources]
    wrapped = [f"-Wl,--wrap={name}" for name in (*WRAPPED, *kernels)]
    includes = ["-I", folder, "-I", bundle / "include", "-I", bundle / "src"]
    all_of_it = [*includes, *wrapped, QUIET, *sources, bundle / "kernels.o"]
    if not loaded:
        _gcc(folder, *all_of_it, ALLOCATIONS, "-o", "quiet")
        return [folder / "quiet"]
    _gcc(folder, *all_of_it, "-shared", "-fPIC", "-o", "quiet.so")
    _gcc(folder, LOADER, ALLOCATIONS, "-rdynamic", "-ldl", "-o", "loader")
    return [folder / "loader", folder / "quiet.so"]


def _gcc(folder: Path, *arguments: object) -> None:
    command = ["gcc", *FLAGS, *map(str, arguments), "-lm", "-lpthread"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def counts(program: list[Path], bundle: Path, threads: int) -> dict[str, int]:
    command = [*program, bundle / "weights.bin", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: int(value) for name, value in (line.split() for line in done.stdout.splitlines())}


def quiet(bundle: Path, folder: Path, loaded: bool = False) -> dict[str, int]:
    """What is counted on several threads, once nothing was asked for and no lock held, and no thread changed a bit."""
    program = build(bundle, folder, loaded=loaded)
    named = subprocess.run(["nm", "-u", program[-1]], capture_output=True, text=True, check=True).stdout
    assert set(LOCKS.findall(named)) <= {f"pthread_mutex_{verb}" for verb in ("init", "lock", "unlock", "destroy")}
    alone = counts(program, bundle, 1)
    for threads in (1, 2, 3, 5):
        seen = counts(program, bundle, threads)
        assert (seen["locked"], seen["asked"]) == (0, 0)
        assert min(seen["kernels"], seen["callbacks"]) > 0
        assert seen["bits"] == alone["bits"], threads
    return {**seen, "more tasks": seen["tasks"] - alone["tasks"]}


@pytest.mark.parametrize("loaded", [False, True])
def test_a_tiny_model_is_quiet(tiny_bundle, tmp_path, loaded):
    """Also in a library that a running program loads, whose thread-local variables are made at their first use."""
    quiet(tiny_bundle, tmp_path, loaded)


@pytest.mark.slow
def test_a_model_with_parallel_loops_is_quiet(digits_bundle, tmp_path):
    assert quiet(digits_bundle, tmp_path)["more tasks"] > 0  # the loops are shared among the threads


@pytest.mark.slow
def test_a_model_that_decodes_is_quiet(tmp_path):
    quiet(tiny_latent.folder() / "model.bundle", tmp_path)


@pytest.mark.parametrize(("sampler", "threads"), [("ddpm", 1), ("dpm-solver++", 3)])
def test_the_program_asks_for_no_more_memory_for_more_steps_and_images(tiny_bundle, tmp_path, sampler, threads):
    tools.need("gcc")
    library = tmp_path / "allocations.so"
    built = ["gcc", *FLAGS, "-shared", "-fPIC", "-DPRELOADED", ALLOCATIONS, "-o", library]
    subprocess.run(built, check=True)
    asked = []
    for images, steps in ((2, 1), (2, 20), (7, 20)):
        command = [tiny_bundle / "bin/edgedm-sample", "-n", images, "--steps", steps, "-o", tmp_path / "a.npy"]
        command += ["--sampler", sampler, "--threads", threads]
        done = subprocess.run(
            [str(part) for part in command],
            env={"LD_PRELOAD": str(library)},
            capture_output=True,
            text=True,
            check=True,
        )
        asked.append(int(done.stderr))
    assert asked[0] > 0
    assert asked == asked[:1] * 3


_ALLOCATES = (
    "session.c",
    {
        "  lane->current = 1 - lane->current;": "  lane->current = 1 - lane->current;\n"
        "  *(void *volatile *)lane->timestep = malloc(8);"
    },
)
_LOCKS = (
    "threads.c",
    {
        "  run_task(pool, 0);": "  pthread_mutex_lock(&pool->lock);\n  run_task(pool, 0);\n"
        "  pthread_mutex_unlock(&pool->lock);"
    },
)
_MAKES_VARIABLES_LATE = (  # and takes long enough for a task for every thread to get one
    "threads.c",
    {
        "  edm_enter_thread();\n": "",
        "  int status = pool->body(": "  edm_enter_thread();\n  for (volatile int i = 0; i < 3000000; ++i) {}\n"
        "  int status = pool->body(",
    },
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "name", "loaded"),
    [(_ALLOCATES, "asked", False), (_LOCKS, "locked", False), (_MAKES_VARIABLES_LATE, "asked", True)],
)
def test_what_would_break_it_is_found(tiny_bundle, tmp_path, change, name, loaded):
    assert counts(build(tiny_bundle, tmp_path, change, loaded), tiny_bundle, 3)[name] > 0
