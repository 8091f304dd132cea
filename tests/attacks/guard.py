"""A process that opens hostile files, each in a child of its own with a bound on memory and time.

It imports every loader once and then reads requests, a line of JSON each, {"loader": NAME, "path": PATH}; the answer
tells what was raised, how many seconds it took and by how many KiB memory grew. Data (heap and private mappings) beyond
the bound make an allocation fail, so a loader that follows a file's claims ends in MemoryError and not in a refusal.
"""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA_BYTES, SECONDS = 192 << 20, 20
FILES = Path(__file__).parent / "files"


def loaders() -> dict[str, Callable[[Path], object]]:
    """Every door through which files come in, each as a function of one path."""
    from edgedm.arrays import read_array
    from edgedm.bundle import load as load_bundle
    from edgedm.export.decoder_file import load_decoder
    from edgedm.export.graph_io import graph_info, load_graph
    from edgedm.golden_file import read_golden
    from edgedm.lower.interface import load_pair
    from edgedm.models import load as load_checkpoint
    from edgedm.models.importers import import_checkpoint
    from edgedm.targets import kernels  # noqa: F401  (before the table, which it imports)
    from edgedm.targets.tuning.crossover import read_table
    from edgedm.verify.gate import load_gate

    def graph(path: Path) -> object:
        return graph_info(load_graph(path))

    def authors(path: Path) -> object:
        return import_checkpoint(path, "ldm", head_channels=16, image_size=8, weights="raw")

    load_checkpoint(FILES / "checkpoint/sound")  # diffusers imports the rest of itself when first used
    return {
        "checkpoint": load_checkpoint,
        "graph": graph,
        "pair": load_pair,
        "decoder": lambda path: load_decoder(path, {"decoder": True}),
        "bundle": load_bundle,
        "authors": authors,
        "golden": read_golden,
        "array": lambda path: read_array(path, "start", (1, 1, 8, 8)),
        "tuning": read_table,
        "gate": load_gate,
    }


def serve() -> None:
    """Answer requests until standard input ends."""
    known = loaders()
    from edgedm.errors import EdgedmError

    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            answer = attempt(known[request["loader"]], Path(request["path"]), EdgedmError)
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            text = stream.read()
        _, status = os.waitpid(child, 0)
        print(text or json.dumps({"kind": f"died with status {status}"}), flush=True)


def attempt(load: Callable[[Path], object], path: Path, ours: type[Exception]) -> dict[str, Any]:
    """Open `path` and say what came of it."""
    used = memory("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + DATA_BYTES,) * 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    signal.alarm(SECONDS)
    before, started = memory("VmRSS"), time.monotonic()
    answer: dict[str, Any] = {"kind": "accepted", "ours": False, "message": ""}
    try:
        load(path)
    except BaseException as error:
        answer = {"kind": type(error).__name__, "ours": isinstance(error, ours), "message": str(error)}
    return answer | {"seconds": time.monotonic() - started, "kib": memory("VmHWM") - before}


def memory(name: str) -> int:
    """A number of /proc/self/status, in KiB."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(f"{name}:")).split()[1])


def place(loader: str, file: Path, folder: Path) -> Path:
    """Put a hostile file where its loader finds it: among the sound files of a checkpoint or bundle, or alone."""
    role = file.name.split(".", 1)[1]  # NAME.config.json stands for config.json
    base = FILES / loader / "sound"
    if not base.is_dir():
        return Path(shutil.copyfile(file, folder / file.name))
    shutil.copytree(base, folder / loader)
    shutil.copyfile(file, folder / loader / role)
    return folder / loader


class Guard:
    """The caller's side: start the process, ask it, end it."""

    def __init__(self) -> None:
        import subprocess

        self.scratch = Path(tempfile.mkdtemp(prefix="edgedm-attacks-"))
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def open(self, loader: str, path: Path) -> dict[str, Any]:
        """Let `loader` open `path`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"loader": loader, "path": str(path)}) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
        shutil.rmtree(self.scratch)


if __name__ == "__main__":
    serve()
