"""One engine in a process of its own that is stopped between its turns.

So an engine's threads cannot spin into another's turn, each gets the environment that it reads only when it is loaded
(threads, instruction sets), and its fastest settings may stay. `Worker` is the caller's side; run as a program, this
file is the engine's: it reads a number of calls a line and answers with a `Sample`.
"""

import contextlib
import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from edgedm.bench.timing import Sample
from edgedm.errors import ToolchainError

SLOW = 0.5
"""Seconds of a call from which on a turn starts without a call to warm the caches: they don't matter then."""

TOLERANCE = 0.25
"""An engine's work may be that of this many threads more than it was given: the interpreter's and the allocator's."""

_PR_SET_PDEATHSIG = 1
_RAISED = re.compile(r"[\w.]*(Error|Exception|Fail)\b:")  # as a traceback ends
_ROOM = 600  # characters of a log in a message


class Worker:
    """An engine's process; use it as a context manager. `turn` is a `timing.Turn`."""

    def __init__(
        self, job: Mapping[str, object], environment: Mapping[str, str], setup_seconds: float | None = None
    ) -> None:
        """Start the engine and wait until it is set up: at most `setup_seconds`, or else ToolchainError."""
        self.engine, self.threads = str(job["engine"]), int(str(job["threads"]))
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgedm.bench.worker", json.dumps(dict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**environment, "PYTHONPATH": os.pathsep.join(["", *sys.path]).lstrip(os.pathsep)},
            start_new_session=True,
        )
        try:
            self._wait(setup_seconds)
            self._answer()  # it is set up
            self._process.send_signal(signal.SIGSTOP)
        except BaseException:  # an interrupt too: nobody else has the process yet
            self.close()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def turn(self, calls: int) -> Sample:
        """Let the process run `calls` calls; raises ToolchainError with the engine's last words where it dies."""
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{calls}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        sample = Sample(*self._answer())
        self._process.send_signal(signal.SIGSTOP)
        return sample

    def close(self) -> None:
        """End the process, and those that it has started: a compiler's, say."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._log.close()

    def _wait(self, seconds: float | None) -> None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise ToolchainError(f"left out: took more than {seconds:g} s to set up")

    def _answer(self) -> list[float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        return [float(number) for number in json.loads(line)]

    def _died(self) -> ToolchainError:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        self.close()
        return ToolchainError(f"bench: {self.engine} failed (exit code {code}): {last_words(lines)}")


def last_words(lines: list[str]) -> str:
    """What a log says at its end: the exception of a traceback with all its lines, else the last line."""
    if not lines:
        return "it said nothing"
    errors = [number for number, line in enumerate(lines) if _RAISED.match(line)]
    return " ".join(lines[errors[-1] if errors else -1 :])[:_ROOM]


def check_threads(engine: str, threads: int, samples: list[Sample]) -> float:
    """Return how many threads shared an engine's work: processor time of all over that of the busiest.

    This holds however busy the machine is. Raises ToolchainError where they are more than it was given.
    """
    shared = sum(each.processor for each in samples) / sum(each.busiest for each in samples)
    if shared > threads + TOLERANCE:
        raise ToolchainError(
            f"bench: {engine} shared its work between {shared:.2f} threads, expected at most {threads}, as asked for; "
            "its time cannot be compared"
        )
    return shared


def main(text: str) -> None:
    """Be the engine that the JSON object `text` (fields of `engines.Job`) describes."""
    from edgedm.bench.engines import Job, make

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a stopped process wouldn't notice its caller's end
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    fields = json.loads(text)
    step = make(Job(**{**fields, "source": Path(fields["source"])}))
    step()
    print("[0, 0, 0]", file=answers, flush=True)
    last = 0.0
    for line in sys.stdin:
        if last < SLOW:
            step()
        calls = int(line)
        before, processor, started = busy(), time.process_time(), time.perf_counter()
        for _ in range(calls):
            step()
        seconds, spent, after = time.perf_counter() - started, time.process_time() - processor, busy()
        last = seconds / calls
        share = busiest_share({thread: after[thread] - before.get(thread, 0) for thread in after})
        print(json.dumps([last, spent / calls, share * spent / calls]), file=answers, flush=True)


def busiest_share(ran: Mapping[str, int]) -> float:
    """The busiest thread's part of what all have run; 1 where a turn was too short for the system's account."""
    return max(ran.values()) / sum(ran.values()) if any(ran.values()) else 1.0


def busy(tasks: Path = Path("/proc/self/task")) -> dict[str, int]:
    """Nanoseconds that each thread of this process has run; one that ends meanwhile is left out."""
    ran = {}
    for task in tasks.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            ran[task.name] = int((task / "schedstat").read_text().split()[0])
    return ran


if __name__ == "__main__":
    main(sys.argv[1])
