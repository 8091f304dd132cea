"""The runner behind a pipe, on this machine's own bundle: everything is what the loaded library gives, bit for bit."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tools

from edgedm.bundle import load
from edgedm.bundle.store import MANIFEST
from edgedm.errors import EdgedmError, InvalidModelError, ToolchainError, UnsupportedError
from edgedm.lower.codegen import PROGRAM_SOURCES
from edgedm.runtime import ExecRunner, LocalRunner, open_runner, sample_bundle

PROGRAM = {Path(name).stem for name in PROGRAM_SOURCES}
rng = np.random.default_rng(0)
X = rng.standard_normal((1, 8, 8)).astype(np.float32)
STATE = {"state.mid": rng.standard_normal((1, 8, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def both(tiny_bundle):
    with LocalRunner(tiny_bundle) as loaded, ExecRunner(tiny_bundle) as piped:
        yield loaded, piped


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 7},
        {"steps": 3, "sampler": "ddpm", "label": 1, "guidance": 1.5},
        {"steps": 3, "eta": 0.5, "label": 0},
        {"timesteps": [900, 500, 60]},
        {"steps": 5, "sampler": "dpm-solver++"},
    ],
)
def test_schedules_and_images_are_the_same(both, options):
    loaded, piped = both
    assert piped.prepare(**options) == loaded.prepare(**options)
    assert same(piped.sample(3, seed=5, first_image=2), loaded.sample(3, seed=5, first_image=2))


def test_drawings_that_start_from_images_are_the_same(both):
    loaded, piped = both
    start = rng.uniform(-1, 1, (2, 1, 8, 8)).astype(np.float32)
    for runner in both:
        runner.prepare(6)
    for progress in (None, lambda done, total: True):
        drawn = piped.sample(2, 5, progress=progress, start=start, strength=0.5)
        assert same(drawn, loaded.sample(2, 5, start=start, strength=0.5))
    with pytest.raises(UnsupportedError, match="start: expected shape"):
        piped.sample(1, start=start)


def test_steps_and_carried_state_are_the_same(both):
    loaded, piped = both
    for state in (None, STATE):
        (a, after_a), (b, after_b) = (runner.step(500, X, 1, state) for runner in both)
        assert same(a, b)
        assert after_a.keys() == after_b.keys()
        assert all(same(after_a[name], after_b[name]) for name in after_a)
    for runner in both:
        runner.prepare(2)
        runner.run_step(0, X)
        runner.reset()
    assert same(piped.run_step(0, X), loaded.run_step(0, X))


def test_every_kernel_call_is_the_same(both):
    loaded, piped = both
    for node in loaded.manifest.nodes:
        inputs = [
            rng.integers(0, 3, operand.shape).astype(operand.dtype)
            for operand in node.inputs
            if operand.source != "weights"
        ]
        for a, b in zip(loaded.run_node(node, inputs), piped.run_node(node, inputs), strict=True):
            assert same(a, b), node.kernel


def test_noise_and_the_shape_of_a_profile_are_the_same(both):
    loaded, piped = both
    assert same(piped.normals(2**63 + 5, 7, 3, 1001), loaded.normals(2**63 + 5, 7, 3, 1001))
    for runner in both:
        runner.prepare(2)
    assert piped.profile(1, X, repeats=2).shape == loaded.profile(1, X, repeats=2).shape
    assert (piped.profile(1, X) > 0).any()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda runner: runner.prepare(50),  # beyond the trained timesteps
        lambda runner: runner.prepare(5, label=9),
        lambda runner: runner.prepare(5, "euler"),
        lambda runner: runner.prepare(0),
        lambda runner: runner.run_step(0, X[0]),
        lambda runner: runner.run_step(99, X),
        lambda runner: runner.write_state({}),
        lambda runner: runner.run_node(0, []),
        # numbers that a C integer would make others of
        lambda runner: runner.prepare(2**32 + 5),
        lambda runner: runner.prepare(-1),
        lambda runner: runner.prepare(5.5),
        lambda runner: runner.prepare(5, label=2**64),
        lambda runner: runner.prepare(5, guidance=1e300),
        lambda runner: runner.prepare(5, guidance=float("nan")),
        lambda runner: runner.prepare(timesteps=[2**64 + 900]),
        lambda runner: runner.run_step(2**32, X),
        lambda runner: runner.profile(2**32, X),
        lambda runner: runner.sample(1, seed=2**64),
        lambda runner: runner.sample(1, seed=-1),
        lambda runner: runner.sample(2**32),
        lambda runner: runner.sample(-1),
        lambda runner: runner.sample(1, first_image=2**32),
        lambda runner: runner.sample(2, first_image=2**32 - 1),
        lambda runner: runner.normals(2**64, 0, 0, 4),
        lambda runner: runner.normals(0, 2**32, 0, 4),
        lambda runner: runner.normals(0, 0, -1, 4),
        lambda runner: type(runner)(runner.bundle, threads=2**32 + 1),
        lambda runner: type(runner)(runner.bundle, lanes=2**32),
        lambda runner: type(runner)(runner.bundle, threads=1025),
    ],
)
def test_refusals_are_the_same_and_the_runner_lives_on(both, wrong):
    texts = []
    for runner in both:
        runner.prepare(5)
        with pytest.raises(UnsupportedError) as refused:
            wrong(runner)
        texts.append(str(refused.value))
        runner.prepare(5)
    assert texts[0] == texts[1]


def test_a_number_that_is_refused_is_named(both):
    for runner in both:
        with pytest.raises(UnsupportedError, match=rf"seed: expected a whole number in 0\.\.{2**64 - 1}, got {2**64}"):
            runner.sample(1, seed=2**64)
        runner.prepare(np.int64(5), label=np.int32(1), timesteps=np.array([900, 500]))
        assert runner.sample(1, seed=np.uint64(2**64 - 1), first_image=2**32 - 1).shape == (1, 1, 8, 8)


def test_progress_counts_the_steps_that_run(both):
    start = rng.uniform(-1, 1, (2, 1, 8, 8)).astype(np.float32)
    seen = []
    for runner in both:
        runner.prepare(6)
        runner.sample(2, progress=lambda *told: seen.append(told) is None, start=start, strength=0.5)
        assert seen[-1] == (6, 6)
        assert max(seen) == (6, 6)


def test_a_bundle_behind_a_pipe_draws_from_images_too(tiny_bundle, tmp_path, monkeypatch):
    np.save(tmp_path / "start.npy", rng.uniform(-1, 1, (2, 1, 8, 8)).astype(np.float32))
    chosen = {"n": 2, "steps": 6, "start": tmp_path / "start.npy", "strength": 0.5}
    sample_bundle(tiny_bundle, tmp_path / "loaded.npy", **chosen)
    monkeypatch.setattr("edgedm.runtime.sample.open_runner", ExecRunner)
    sample_bundle(tiny_bundle, tmp_path / "piped.npy", **chosen)
    assert (tmp_path / "piped.npy").read_bytes() == (tmp_path / "loaded.npy").read_bytes()


def test_progress_can_stop_a_drawing(both):
    seen = []
    both[1].prepare(3)
    with pytest.raises(KeyboardInterrupt):
        both[1].sample(5, progress=lambda done, total: seen.append((done, total)) or done < 6)
    assert seen == [(3, 15), (6, 15)]


def test_a_program_that_dies_is_an_error_that_says_how(tiny_bundle):
    with ExecRunner(tiny_bundle) as runner:
        runner._process.kill()
        with pytest.raises(EdgedmError, match=r"died during noise: SIGKILL"):
            runner.normals(0, 0, 0, 4)
    with pytest.raises(EdgedmError, match=r"died during start: exit code 3: no luck"):
        ExecRunner(tiny_bundle, command=("sh", "-c", "echo no luck >&2; exit 3"))


def test_a_command_that_cannot_be_run_is_an_error_and_leaves_no_file_open(tiny_bundle, tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for command in ("no-such-emulator", str(tmp_path)):
        with pytest.raises(ToolchainError, match=rf"{command}.*cannot be run"):
            ExecRunner(tiny_bundle, command=(command,))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_is_no_probe_of_ours_is_refused(tiny_bundle):
    said = r"import sys; sys.stdout.buffer.write(bytes(8) + (8).to_bytes(8, 'little') + b'SOMETHIN')"
    with pytest.raises(InvalidModelError, match="not the probe"):
        ExecRunner(tiny_bundle, command=("python3", "-c", said))


MALFORMED = [
    (0, b""),
    (99, b"what"),
    (1, b"\x05"),
    (1, bytes(24) + b"\x01\x00\x00\x00" + bytes(12)),
    (2, b""),
    (2, bytes(7)),
    (5, bytes(3)),
    (6, bytes(5)),
    (7, bytes(16) + b"\xff" * 8),
    (8, b"\xff\xff\xff\xffstep" + bytes(8)),
    (8, bytes(4) + b"x" * 12),
    (8, bytes(4) + b"step" + bytes(8)),
    (9, b"\xff" * 8 + b"data"),
    (9, b""),
    (10, bytes(9)),
    (11, bytes(1)),
]


def refuse_all(runner) -> None:
    for command, payload in MALFORMED:
        with pytest.raises(EdgedmError):
            runner._ask(command, "a malformed request", payload)
    assert runner.normals(1, 0, 0, 5).shape == (5,)


def test_malformed_requests_are_refused_and_the_program_lives_on(tiny_bundle):
    with ExecRunner(tiny_bundle) as runner:
        refuse_all(runner)


@pytest.mark.slow
def test_sanitizers_find_nothing_in_the_probe(tiny_bundle, tmp_path):
    tools.need("gcc")
    sources = [path for path in (tiny_bundle / "src").glob("*.c") if path.stem not in PROGRAM]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-DEDM_PROBE", "-g", "-O1", "-ffp-contract=off", "-fno-sanitize-recover=all"]
    flags += ["-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror", "-fsanitize=address,undefined"]
    folders = ["-I", tiny_bundle / "include", "-I", tiny_bundle / "src"]
    objects = [tiny_bundle / "src/probe/main.c", *sources, tiny_bundle / "kernels.o"]
    command = ["gcc", *flags, *folders, *objects, "-o", tmp_path / "probe", "-lm", "-lpthread"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    instead = ("sh", "-c", f'exec {tmp_path / "probe"} "$@"')
    with ExecRunner(tiny_bundle, threads=2, command=instead) as runner, LocalRunner(tiny_bundle) as here:
        refuse_all(runner)
        for each in (runner, here):
            each.prepare(3, "ddpm", label=1, guidance=1.5)
        assert same(runner.sample(2, 1), here.sample(2, 1))
        runner.write_weights(0, bytes(8))
        assert runner.profile(0, X).size
        runner.close()
        assert runner._process.returncode == 0


def test_changed_weights_are_seen_until_they_are_put_back(tiny_bundle):
    with ExecRunner(tiny_bundle) as runner:
        weights = runner.bundle.weights.read_bytes()
        before = runner.step(500, X)[0]
        runner.write_weights(0, bytes(len(weights)))
        assert not same(runner.step(500, X)[0], before)
        runner.write_weights(0, weights)
        assert same(runner.step(500, X)[0], before)
        with pytest.raises(UnsupportedError, match="beyond the weights"):
            runner.write_weights(len(weights) - 1, b"ab")


def _with_target(bundle, folder, name):
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["target"]["name"] = name
    manifest["sections"] = [{**each, "variants": [name]} for each in manifest["sections"]]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_a_bundle_opens_where_it_runs(tiny_bundle, tmp_path, monkeypatch):
    with open_runner(tiny_bundle) as runner:
        assert isinstance(runner, LocalRunner)
    monkeypatch.setattr("shutil.which", lambda tool: None)
    with pytest.raises(ToolchainError, match="qemu-aarch64-static is missing"):
        open_runner(_with_target(tiny_bundle, tmp_path / "a.bundle", "aarch64"))
    with pytest.raises(UnsupportedError, match="target 'z80'"):
        open_runner(_with_target(tiny_bundle, tmp_path / "b.bundle", "z80"))


def test_every_bundle_ships_its_probe(tiny_bundle):
    assert "bin/edgedm-probe" in load(tiny_bundle).manifest.files
