"""Drawing from an image and step by step, by every sampler, bit for bit as numpy; several threads, sessions, models."""

import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_model

from edgedm.diffusion import NoiseSchedule, first_step, trajectory
from edgedm.errors import UnsupportedError
from edgedm.lower import compile as compile_graph
from edgedm.runtime import LocalRunner

SCHEDULE = NoiseSchedule.from_config(tiny_model.CONFIG["noise_schedule"])
SHAPE = (1, 8, 8)
RUNS = [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0), ("dpm-solver++", 0.0)]


@pytest.fixture(scope="module")
def runner(tiny_bundle):
    with LocalRunner(tiny_bundle) as made:
        yield made


def _images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, *SHAPE)).astype(np.float32)


def _numpy(runner, sampler, eta, start, strength, image=0, steps=12):
    """x after every step and the previews, by numpy over the runner's steps."""
    runner.prepare(steps, sampler, eta, label=1)
    previews: list[np.ndarray] = []
    xs = trajectory(
        lambda x, _t, step: runner.run_step(step, x),
        SCHEDULE,
        SHAPE,
        steps,
        sampler,
        eta,
        7,
        image,
        start=start,
        strength=strength,
        previews=previews,
    )
    return list(xs)[1:], previews


@pytest.mark.parametrize(("sampler", "eta"), RUNS)
@pytest.mark.parametrize("strength", [None, 1.0, 0.6, 0.1])
def test_every_step_and_preview_is_numpys_bit_for_bit(runner, sampler, eta, strength):
    start = None if strength is None else _images(1)[0]
    want, previews = _numpy(runner, sampler, eta, start, strength or 1.0)
    runner.prepare(12, sampler, eta, label=1)
    got = list(runner.previews(7, 0, start, strength or 1.0))
    assert len(got) == 12 - (0 if strength is None else first_step(12, strength))
    assert [x.tobytes() for x, _ in got] == [x.tobytes() for x in want]
    assert [estimate.tobytes() for _, estimate in got] == [x.tobytes() for x in previews]
    images = None if start is None else start[None]
    drawn = runner.sample(1, 7, start=images, strength=strength or 1.0)
    assert drawn[0].tobytes() == want[-1].tobytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_every_image_starts_from_its_own(runner, tiny_bundle, threads):
    start = _images(5)
    want = [_numpy(runner, "dpm-solver++", 0.0, start[i], 0.5, image=i)[0][-1] for i in range(5)]
    with LocalRunner(tiny_bundle, threads) as parallel:
        parallel.prepare(12, "dpm-solver++", label=1)
        got = parallel.sample(5, 7, start=start, strength=0.5)
    assert got.tobytes() == np.stack(want).tobytes()


def test_a_start_that_does_not_fit_is_refused(runner):
    runner.prepare(12)
    for strength in (0.0, -1.0, 1.1, float("nan"), 0.05):
        with pytest.raises(UnsupportedError, match="strength"):
            runner.sample(1, start=_images(1), strength=strength)
        with pytest.raises(UnsupportedError, match="strength"):
            first_step(12, strength)
    with pytest.raises(UnsupportedError, match=r"start: expected shape \(2, 1, 8, 8\)"):
        runner.sample(2, start=_images(1), strength=0.5)


def test_another_use_of_the_session_ends_a_drawing(runner):
    for disturb in (
        lambda: runner.sample(1),
        lambda: runner.run_step(0, _images(1)[0]),
        runner.reset,
        lambda: runner.prepare(12),
        lambda: runner.write_state(runner.read_state()),
        lambda: runner.profile(0, _images(1)[0]),
    ):
        runner.prepare(12)
        drawing = runner.previews()
        next(drawing)
        disturb()
        with pytest.raises(UnsupportedError, match="edm_begin"):
            next(drawing)


def test_after_a_cancel_the_session_draws_the_same_images(runner, tiny_bundle):
    for threads in (1, 2):
        with LocalRunner(tiny_bundle, threads) as made:
            made.prepare(8, "dpm-solver++", label=1)
            want = made.sample(5, 3)
            for stop_at in (1, 9, 39):
                with pytest.raises(KeyboardInterrupt):
                    made.sample(5, 3, progress=lambda done, _total, stop_at=stop_at: done < stop_at)
                assert made.sample(5, 3).tobytes() == want.tobytes()


def test_progress_is_told_on_the_callers_thread_and_no_lock_is_held(tiny_bundle):
    """The callback draws with another session and counts on its own, so nothing can be locked meanwhile."""
    caller, seen = threading.get_native_id(), []
    with LocalRunner(tiny_bundle, 3) as runner, LocalRunner(tiny_bundle, 2) as other:
        runner.prepare(6)
        other.prepare(2)

        def report(done: int, _total: int) -> bool:
            seen.append((threading.get_native_id(), done))
            other.sample(2)
            runner.normals(0, 0, 0, 4)
            return True

        runner.sample(7, progress=report)
    assert {thread for thread, _ in seen} == {caller}
    assert [done for _, done in seen] == list(range(1, 43))


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    config = {**tiny_model.CONFIG, "noise_schedule": {"num_train_timesteps": 500, "timestep_spacing": "trailing"}}
    compile_graph(tiny_model.write_pair(folder, config), folder / "model.bundle", steps=5, sampler="dpm-solver++")
    return folder / "model.bundle"


def test_the_bundles_own_sampler_is_the_programs_default(other_bundle, tmp_path):
    program = other_bundle / "bin/edgedm-sample"
    assert "(dpm-solver++)" in subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    subprocess.run([program, "-n", "1", "-o", tmp_path / "a.npy"], check=True)
    with LocalRunner(other_bundle) as runner:
        runner.prepare(5, "dpm-solver++")
        assert np.load(tmp_path / "a.npy").tobytes() == runner.sample(1).tobytes()


def test_models_sessions_and_calling_threads_at_once(tiny_bundle, other_bundle):
    def draw(job: int) -> bytes:
        bundle = other_bundle if job % 3 == 0 else tiny_bundle
        with LocalRunner(bundle, threads=1 + job % 2) as runner:
            runner.prepare(6, RUNS[job % 4][0], label=job % 2)
            return runner.sample(4, seed=job % 4).tobytes()

    alone = [draw(job) for job in range(12)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(draw, range(12))) == alone
    assert alone[0] != alone[1]


def _allowed(task: str) -> set[int]:
    return os.sched_getaffinity(int(task))


def test_the_sessions_own_threads_run_on_the_named_cores(tiny_bundle):
    mine = sorted(os.sched_getaffinity(0))
    before = set(os.listdir("/proc/self/task"))
    with LocalRunner(tiny_bundle, threads=3, cores=mine[:1]) as runner:
        added = set(os.listdir("/proc/self/task")) - before
        assert len(added) == 2
        assert all(_allowed(task) == set(mine[:1]) for task in added)
        assert sorted(os.sched_getaffinity(0)) == mine
        runner.prepare(4)
        runner.sample(3)
        assert runner.big_cores()
    with pytest.raises(UnsupportedError, match="cores"):
        LocalRunner(tiny_bundle, threads=2, cores=[5000])
    with pytest.raises(UnsupportedError, match="cores"):
        LocalRunner(tiny_bundle, threads=2, cores=[1023])
