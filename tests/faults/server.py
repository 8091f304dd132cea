"""The caller's side of `verbs.py`: compile the shim, start the process under it, ask it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Server:
    """Runs a verb in a folder, whole, up to its `at`-th change of a file, or for so many seconds."""

    def __init__(self, room: Path) -> None:
        self.room = room
        shim = room / "shim.so"
        compiler = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1"]
        subprocess.run([*compiler, str(HERE / "shim.c"), "-o", str(shim)], check=True)
        variables = {
            **os.environ,
            "LD_PRELOAD": str(shim),
            "OMP_NUM_THREADS": "1",
            "EDGEDM_BUNDLE_CACHE": str(room / "kept"),
        }
        command = [sys.executable, str(HERE / "verbs.py"), str(room)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def run(
        self,
        verb: str,
        folder: Path,
        at: int = 0,
        mode: str = "",
        whole: bool = False,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {"verb": verb, "folder": str(folder), "at": at, "mode": mode, "whole": whole, "seconds": seconds}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer
