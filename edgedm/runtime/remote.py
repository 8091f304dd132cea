"""`edgedm run-on`: copy a bundle to a machine, run its self-test and its benchmark there, bring the figures back."""

import io
import math
import os
import re
import shlex
import signal
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgedm import progress
from edgedm.bundle import Bundle, load
from edgedm.errors import EdgedmError, ToolchainError, UnsupportedError
from edgedm.outcome import Outcome
from edgedm.runtime.choice import as_variant

_SHIPPED = ("bin/edgedm-sample", "weights.bin", "golden/golden.bin")
_VERDICT = re.compile(r"^self-test (passed|FAILED)$", re.MULTILINE)
_CONDITION = "condition.npy"  # zeros, which mean no text: how long a step takes does not depend on it
_CANNOT_EXECUTE = (126, 127)
_SECONDS_TO_CONNECT = 15
_SECONDS_ALIVE, _TIMES_ALIVE = 15, 4  # a machine that is silent for a minute, when asked whether it is there, is gone
_BEGUN, _ENDED = "edgedm-began", "edgedm-ended"
_END = re.compile(rf"\n{_ENDED} (\d+)\r?\n")
_KILLED = {4: "an instruction that its processor lacks", 9: "killed: perhaps its memory was full"}
_CORE = re.compile(
    r"^(?:CPU part|model name|uarch)\s*: (.+)$", re.MULTILINE
)  # in the order of a block, the last counts
_STARTUP = re.compile(r"^start-up ([\d.]+) ms", re.MULTILINE)
_STEP = re.compile(r"^step ([\d.]+) ms", re.MULTILINE)
_PEAK = re.compile(r"^peak memory (\d+) KiB", re.MULTILINE)
_VARIANT = re.compile(r"^variant (\S+)$", re.MULTILINE)
_ERRORS = re.compile(r"^timestep +\d+ +relative error (-?nan|-?inf|[\d.e+-]+)", re.MULTILINE)
_SCRATCH = re.compile(r"/[^\n]*edgedm\.\w+")


@dataclass(frozen=True)
class Shell:
    """A shell elsewhere: `call` are the words before a command line for it, `room` is where files may be executed."""

    name: str
    call: tuple[str, ...]
    room: str
    missing: str  # how to get the program

    def run(self, line: str, data: bytes | None = None) -> tuple[int, str, str]:
        """Run `line` there with `data` on its standard input, nothing if None: exit code, output, errors.

        What it printed is whole, and all of it its own: a connection that is lost on the way may end with 0, as adb's
        does, and a login may print something before or behind.
        """
        # A shell becomes a lone command, and of a signal that ends that one ssh tells no more than 255.
        marked = f"echo {_BEGUN}; {line}; code=$?; echo; echo {_ENDED} $code; exit $code"
        call, stdin = [*self.call, marked], subprocess.DEVNULL if data is None else None
        try:
            done = subprocess.run(call, stdin=stdin, input=data, capture_output=True, check=False)
        except FileNotFoundError:
            raise ToolchainError(f"{self.call[0]} is missing: {self.missing}") from None
        out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
        _, begun, printed = out.partition(f"{_BEGUN}\n")
        ended = list(_END.finditer(printed))
        if ended:
            return int(ended[-1][1]), printed[: ended[-1].start()], err
        said = (err or out).strip()[-500:] or "no output"
        if not begun:
            raise ToolchainError(f"{self.name}: cannot be reached, or has no POSIX shell (at `{line}`): {said}")
        raise ToolchainError(f"{self.name}: the connection was lost before `{line}` ended: {said}")

    def must(self, line: str, data: bytes | None = None) -> str:
        """The output of a line that has to succeed."""
        code, out, err = self.run(line, data)
        if code:
            raise ToolchainError(f"{self.name}: `{line}` ended with {code}: {(err or out).strip()[-500:]}")
        return out


def _ssh(host: str) -> Shell:
    options = (
        "BatchMode=yes",
        f"ConnectTimeout={_SECONDS_TO_CONNECT}",
        f"ServerAliveInterval={_SECONDS_ALIVE}",
        f"ServerAliveCountMax={_TIMES_ALIVE}",
    )
    call = ("ssh", *(word for option in options for word in ("-o", option)), "--", host)
    return Shell(f"ssh {host}", call, '"${TMPDIR:-/tmp}"', "install an OpenSSH client")


def _adb(serial: str) -> Shell:
    # -T: no terminal, which would change the bytes of standard input. Elsewhere files may not be executed.
    return Shell(f"adb {serial}", ("adb", "-s", serial, "shell", "-T"), "/data/local/tmp", "Android's platform-tools")


PROTOCOLS: dict[str, Callable[[str], Shell]] = {"ssh": _ssh, "adb": _adb}


def run_on(
    protocol: str,
    host: str,
    bundle: str | os.PathLike[str],
    *,
    threads: Sequence[int] = (1, 2),
    steps: int | None = None,
    images: int = 5,
    variant: str | None = None,
) -> Outcome:
    """Copy `bundle` to `host` (of ssh; a serial number of adb), run its self-test and time it there, and tidy up.

    `images` images of `steps` steps (the bundle's own number where None) are drawn, each by a process of its own, with
    every number of `threads` in turn. Figures, those of `edgedm.bench` under its names: `step_ms.edgedm.t<n>` (the
    median of the images; `.decile1` and `.decile9` their spread), `bytes.peak_rss` (with the first number of threads;
    `bytes.peak_rss.t<n>` with each), and `startup_ms.edgedm.t<n>` (processor time until the first step begins; median),
    `self_test.ok`, `self_test.steps`, `self_test.worst_error`, `cores`. `details["machine"]` and
    `details["processor"]` are what the machine says of itself, `details["target"]` which variant of the bundle it
    runs: `variant`, or its best. `ok` is False if the self-test fails. Raises ToolchainError for a machine that cannot
    be reached, is lost on the way or cannot run the target's programs, InvalidModelError for an altered bundle,
    UnsupportedError for another protocol or a variant that is not there, EdgedmError for a program that refuses to
    run there.
    """
    if protocol not in PROTOCOLS:
        raise UnsupportedError(f"run-on: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if not host or host.startswith("-"):
        raise UnsupportedError(f"run-on: {host!r} is no name of a machine")
    if not threads or min(threads) < 1 or images < 1 or (steps is not None and steps < 1):
        raise UnsupportedError("run-on: threads, steps and images: expected numbers from 1 up")
    opened, shell = load(bundle), PROTOCOLS[protocol](host)
    if not opened.is_program:
        raise UnsupportedError(
            f"{opened.path} is compiled for {opened.manifest.target.name}, which runs in browsers: see `edgedm web`"
        )
    if variant is not None:
        opened = as_variant(opened, variant)
    folder = shell.must(f"mktemp -d {shell.room}/edgedm.XXXXXX").strip()
    if not _SCRATCH.fullmatch(folder):
        raise ToolchainError(f"{shell.name}: `mktemp -d` gave {folder!r}, no folder")
    try:
        progress.stage(f"copying to {shell.name}:{folder}")
        shell.must(f"tar -x -f - -C {shlex.quote(folder)}", _archive(opened))
        program = shlex.quote(f"{folder}/bin/edgedm-sample") + (f" --variant {shlex.quote(variant)}" if variant else "")
        figures, details = _examine(shell, program, opened)
        options = f"{_conditions(opened, folder)}{f' --steps {steps}' if steps else ''}"
        drawing = f"{program} -n 1{options} --times -o {shlex.quote(folder)}/image.npy"
        figures |= _time(shell, drawing, opened, threads, images)
    except BaseException as error:
        left = _left_behind(shell, folder)
        if left and isinstance(error, EdgedmError):
            raise type(error)(f"left behind there: {left}; after: {error}") from error
        raise
    left = _left_behind(shell, folder)
    details |= {"bundle": str(opened.path), "host": shell.name, **({"left_behind": left} if left else {})}
    return Outcome(bool(figures["self_test.ok"]), figures, details)


def _conditions(bundle: Bundle, folder: str) -> str:
    """The options without which a model does not draw: none, where it knows by itself what no condition is."""
    manifest = bundle.manifest
    text = f" --condition {shlex.quote(folder)}/{_CONDITION}" if manifest.condition_shape is not None else ""
    return text + (" --label 0" if manifest.classes and manifest.null_class < 0 else "")


def _left_behind(shell: Shell, folder: str) -> str:
    """Remove the folder there; where that fails, say what stays and why: what was measured is not lost for it."""
    try:
        code, out, err = shell.run(f"rm -rf {shlex.quote(folder)}")
    except ToolchainError as error:
        return f"{folder}: {error}"
    return f"{folder}: `rm -rf` ended with {code}: {(err or out).strip()[-300:]}" if code else ""


def _archive(bundle: Bundle) -> bytes:
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name in bundle.manifest.files:
                if name in _SHIPPED or _is_read(name, bundle):
                    archive.add(bundle.path / name, name, filter=_anonymous)
            if bundle.manifest.condition_shape is not None:
                data = io.BytesIO()
                np.save(data, np.zeros(bundle.manifest.condition_shape, np.float32))
                entry = tarfile.TarInfo(_CONDITION)
                entry.size = data.tell()
                archive.addfile(entry, io.BytesIO(data.getvalue()))
        file.seek(0)
        return file.read()


def _is_read(name: str, bundle: Bundle) -> bool:
    """Whether the self-test reads this file of layers: each of several variants has its own."""
    names = bundle.manifest.variants() if bundle.variant is None else [bundle.variant]
    return name in ("golden/layers.bin", *(f"golden/layers.{each}.bin" for each in names))


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nobody's file: the owner's number of this machine means nothing there."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _examine(shell: Shell, program: str, bundle: Bundle) -> tuple[dict[str, float], dict[str, str]]:
    """What the machine is, and what the self-test says."""
    figures: dict[str, float] = {}
    details = {"machine": shell.must("uname -s -r -m").strip()}
    code, out, _ = shell.run("nproc")
    if not code and out.strip().isdigit():
        figures["cores"] = float(out)
    _, cores, _ = shell.run("cat /proc/cpuinfo")
    details |= {"processor": kinds} if (kinds := _kinds(cores)) else {}
    progress.stage("self-test")
    details["self_test"], passed = _run(shell, bundle, f"{program} --self-test")
    verdict = _VERDICT.search(details["self_test"])
    if verdict is None:
        raise ToolchainError(f"{shell.name}: the self-test gave no verdict: {details['self_test'].strip()[-500:]}")
    ran = _VARIANT.search(details["self_test"])
    details["target"] = ran[1] if ran else bundle.manifest.target.name
    errors = [float(each) for each in _ERRORS.findall(details["self_test"])]
    figures |= {"self_test.ok": float(passed and verdict[1] == "passed"), "self_test.steps": float(len(errors))}
    if errors:
        figures["self_test.worst_error"] = max(errors, key=lambda error: error if math.isfinite(error) else math.inf)
    return figures, details


def _kinds(cpuinfo: str) -> str:
    """How many cores of each kind: by the number of the part on ARM, elsewhere by a name; "" where none is told."""
    found = [_CORE.findall(block) for block in re.split(r"\n\s*\n", cpuinfo)]
    return ", ".join(f"{count} x {name}" for name, count in Counter(each[-1] for each in found if each).items())


def _time(shell: Shell, drawing: str, bundle: Bundle, threads: Sequence[int], images: int) -> dict[str, float]:
    """Draw image after image, each with every number of threads: what else the machine does meets all alike."""
    said: dict[int, list[str]] = {count: [] for count in threads}
    for number in range(images):
        for count in threads:
            progress.stage(f"image {number + 1} of {images} with {count} thread{'s' if count > 1 else ''}")
            line = f"{drawing} --threads {count}"
            text, drawn = _run(shell, bundle, line)
            if not drawn:
                raise EdgedmError(f"{shell.name}: `{line}` failed: {text.strip()[-500:]}")
            if not _STEP.search(text):
                raise EdgedmError(f"{shell.name}: `{line}` told no time of a step: {text.strip()[-500:]}")
            said[count].append(text)
    figures: dict[str, float] = {}
    for count, texts in said.items():
        step, startup, peak = (_numbers(pattern, texts) for pattern in (_STEP, _STARTUP, _PEAK))
        low, middle, high = np.quantile(step, (0.1, 0.5, 0.9))
        figures[f"step_ms.edgedm.t{count}"] = float(middle)
        figures[f"step_ms.edgedm.t{count}.decile1"] = float(low)
        figures[f"step_ms.edgedm.t{count}.decile9"] = float(high)
        if startup:
            figures[f"startup_ms.edgedm.t{count}"] = float(np.median(startup))
        if peak:
            figures[f"bytes.peak_rss.t{count}"] = max(peak) * 1024
            figures.setdefault("bytes.peak_rss", max(peak) * 1024)
    return figures


def _numbers(pattern: re.Pattern[str], texts: Sequence[str]) -> list[float]:
    return [float(found[1]) for text in texts if (found := pattern.search(text))]


def _run(shell: Shell, bundle: Bundle, line: str) -> tuple[str, bool]:
    """Run the bundle's program: what it printed and whether its check passed; EdgedmError for what is no verdict."""
    code, out, err = shell.run(line)
    if code in _CANNOT_EXECUTE:
        raise ToolchainError(
            f"{shell.name} cannot run programs for {bundle.manifest.target.name}: {(err or out).strip()[-300:]}; "
            "compile for its instruction set: see `edgedm targets`"
        )
    if code > 128:
        raise ToolchainError(
            f"{shell.name}: the program was ended by signal {code - 128} ({_what_signal(code - 128)}; the "
            f"bundle is for {bundle.manifest.target.name}): {(err or out).strip()[-300:]}"
        )
    if code > 1:  # 0 and 1 are the verdict of a check
        raise EdgedmError(f"{shell.name}: `{line}` ended with {code}: {(err or out).strip()[-500:]}")
    return out + err, code == 0


def _what_signal(number: int) -> str:
    """What a signal says of the program that it ended."""
    known = {each.value: each.name for each in signal.Signals}
    return _KILLED.get(number, known.get(number, "unknown"))
