"""Engines in processes of their own: stopped between turns, their threads counted, their last words reported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_model

from edgedm.bench.timing import Sample
from edgedm.bench.worker import Worker, busiest_share, busy, check_threads, last_words
from edgedm.errors import ToolchainError
from edgedm.targets import resolve


def job(engine: str, source: Path, threads: int = 1) -> dict[str, object]:
    return {"engine": engine, "source": str(source), "threads": threads, "target": resolve("host").name}


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture(scope="module")
def worker():
    with Worker(job("edgedm", tiny_model.folder() / "model.bundle"), dict(os.environ)) as made:
        yield made


def test_a_process_is_stopped_between_its_turns(worker):
    pid = worker._process.pid
    for _ in range(2):
        deadline = time.monotonic() + 10
        while state(pid) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state(pid) == "T"
        sample = worker.turn(3)
        assert sample.seconds > 0
        assert 0 < sample.busiest <= sample.processor


def test_an_engine_that_fails_says_why(tmp_path):
    with pytest.raises(ToolchainError, match=r"edgedm failed \(exit code 1\): .*InvalidModelError.*no such file"):
        Worker(job("edgedm", tmp_path), dict(os.environ))


def test_an_engine_that_takes_too_long_to_be_set_up_is_ended_with_all_that_it_started(monkeypatch):
    started, close = [], Worker.close
    monkeypatch.setattr(Worker, "close", lambda worker: (started.append(worker._process), close(worker)))
    with pytest.raises(ToolchainError, match=r"left out: took more than 0\.01 s to set up"):
        Worker(job("edgedm", tiny_model.folder() / "model.bundle"), dict(os.environ), setup_seconds=0.01)
    [process] = started
    assert process.returncode == -signal.SIGKILL


def test_an_engine_that_dies_in_its_turn_is_reported_by_its_name():
    with Worker(job("edgedm", tiny_model.folder() / "model.bundle"), dict(os.environ)) as made:
        os.kill(made._process.pid, signal.SIGKILL)
        made._process.wait()
        with pytest.raises(ToolchainError, match="edgedm failed"):
            made.turn(1)


def test_the_process_ends_with_the_one_that_started_it(tmp_path):
    script = (
        "import json, os, sys\n"
        "from edgedm.bench.worker import Worker\n"
        "made = Worker(json.loads(sys.argv[1]), dict(os.environ))\n"
        "print(made._process.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    import json

    text = json.dumps(job("edgedm", tiny_model.folder() / "model.bundle"))
    done = subprocess.run([sys.executable, "-c", script, text], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and state(pid) != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists() or state(pid) == "Z"


def test_an_interrupt_while_an_engine_is_set_up_leaves_no_process(monkeypatch, tmp_path):
    started = []

    def interrupted(worker):
        started.append(worker._process)
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Worker(job("edgedm", tmp_path), dict(os.environ))
    [process] = started
    assert process.returncode == -signal.SIGKILL


def test_an_engine_with_more_threads_than_it_was_given_is_refused():
    assert check_threads("x", 1, [Sample(9.0, 1.0, 1.0), Sample(9.0, 2.0, 2.0)]) == 1.0
    assert check_threads("x", 2, [Sample(9.0, 2.0, 1.0)]) == 2.0
    with pytest.raises(ToolchainError, match=r"x shared its work between 1\.80 threads, expected at most 1"):
        check_threads("x", 1, [Sample(9.0, 1.8, 1.0)])


def test_the_busiest_threads_share_is_of_all_that_ran():
    assert busiest_share({"1": 30, "2": 10, "3": 0}) == 0.75
    assert busiest_share({"1": 0}) == 1.0


def test_a_thread_that_ends_while_threads_are_listed_is_left_out(tmp_path, monkeypatch):
    read = Path.read_text

    def ends(path, *rest):
        if path.parent.name == "3":
            raise ProcessLookupError
        return read(path, *rest)

    for name in ("1", "2", "3"):
        (tmp_path / name).mkdir()
    (tmp_path / "1" / "schedstat").write_text("17 4 2\n")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", ends)
        assert busy(tmp_path) == {"1": 17}
    assert str(os.getpid()) in busy()


def test_the_last_words_are_the_exceptions_where_there_is_one():
    lines = ["loading", "Traceback (most recent call last):", "lib.core.ConvertError: no such operator", "in line 7"]
    assert last_words(lines) == "lib.core.ConvertError: no such operator in line 7"
    assert last_words(["Killed"]) == "Killed"
    assert last_words([]) == "it said nothing"
