"""While images are drawn, no memory is asked for, and kernels, their loops and callbacks run with no lock held."""

import re
import subprocess
from pathlib import Path

import pytest
import tiny_latent
import tiny_model
import tools

from edgedm.bundle import load
from edgedm.lower.codegen import PROGRAM_SOURCES
from edgedm.lower.objects import SYMBOL

MAIN = Path(__file__).with_name("quiet.c")
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-DEDM_PROBE", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
WRAPPED = ("pthread_mutex_lock", "pthread_mutex_unlock", "TVMBackendParallelLaunch")
LOCKS = re.compile(r"\b((?:pthread_(?:mutex|rwlock|spin|barrier)|sem|mtx)_\w+)")


def build(bundle: Path, folder: Path, change: tuple[str, str] = ("\n", "\n")) -> Path:
    """quiet.c with the bundle's library sources, in which the first text of `change` became the second."""
    tools.need("gcc")
    kernels = sorted({f"{SYMBOL}{node.kernel}" for node in load(bundle).manifest.nodes})
    (folder / "kernels.h").write_text("".join(f"KERNEL({name})\n" for name in kernels))
    sources = []
    for path in sorted((bundle / "src").glob("*.c")):
        if path.name not in PROGRAM_SOURCES:
            sources.append(folder / path.name)
            sources[-1].write_text(path.read_text().replace(*change))
    wrapped = [f"-Wl,--wrap={name}" for name in (*WRAPPED, *kernels)]
    includes = ["-I", folder, "-I", bundle / "include", "-I", bundle / "src"]
    command = ["gcc", *FLAGS, *includes, *wrapped, MAIN, *sources, bundle / "kernels.o", "-o", folder / "quiet"]
    done = subprocess.run(
        [*map(str, command), "-lm", "-lpthread"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "quiet"


def counts(program: Path, bundle: Path, threads: int) -> dict[str, int]:
    done = subprocess.run([program, bundle / "weights.bin", str(threads)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: int(value) for name, value in (line.split() for line in done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("latent", [False, True])
def test_nothing_is_allocated_and_no_lock_is_held(digits_bundle, tmp_path, latent):
    """By a model whose kernels have parallel loops, and by one that decodes."""
    bundle = tiny_latent.folder() / "model.bundle" if latent else digits_bundle
    program = build(bundle, tmp_path)
    named = subprocess.run(["nm", "-u", program], capture_output=True, text=True, check=True).stdout
    assert set(LOCKS.findall(named)) <= {f"pthread_mutex_{verb}" for verb in ("init", "lock", "unlock", "destroy")}
    for threads in (1, 3):
        seen = counts(program, bundle, threads)
        assert (seen["locked"], seen["asked"]) == (0, 0)
        assert min(seen["kernels"], seen["callbacks"]) > 0
        assert latent or seen["tasks"] > 0


_ALLOCATES = (
    "  lane->current = 1 - lane->current;",
    "  lane->current = 1 - lane->current;\n  *(void *volatile *)lane->timestep = malloc(8);",
)
_LOCKS = (
    "  work(pool, start_round(pool, pool->tasks));",
    "  uint32_t begun = start_round(pool, pool->tasks);\n  pthread_mutex_lock(&pool->lock);\n"
    "  work(pool, begun);\n  pthread_mutex_unlock(&pool->lock);",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "change", "name"), [("session.c", _ALLOCATES, "asked"), ("threads.c", _LOCKS, "locked")]
)
def test_what_would_break_it_is_found(tmp_path, source, change, name):
    bundle = tiny_model.folder() / "model.bundle"
    assert (bundle / "src" / source).read_text().count(change[0]) == 1
    assert counts(build(bundle, tmp_path, change), bundle, 3)[name] > 0
