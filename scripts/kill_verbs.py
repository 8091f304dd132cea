"""Kill every verb at random moments and let it fail at every change: python scripts/kill_verbs.py [--kills 100]

First each verb runs under the tests' shim (`tests/faults/shim.c`) once for every write, rename, fsync, creation and
removal below its target, killed before it, amid it, and refused as by a full disk; then it is started as a program
and killed after a random time, `--kills` times. After each the target must be the old one or the new one, whole. Ends
with 1 if it ever is not.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/faults")]

import test_nothing_half_written as faults  # noqa: E402
from server import Server  # noqa: E402


def every_point(server: Server, verb: str, room: Path) -> tuple[int, int]:
    """Fail and kill at every change; returns how many there were, and how many left something broken."""
    whole, broken, tried = target(server, verb, room), 0, 0
    for mode in faults.MODES:
        for at in range(1, int(str(whole["count"])) + 1):
            tried += 1
            try:
                faults.check(server, verb, room, mode, at, whole)
            except AssertionError as error:
                broken += 1
                print(f"{verb} {faults.MODES[mode]} change {at}: {error}", file=sys.stderr)
                shutil.rmtree(room / f"{mode}{at}")
    return tried, broken


def random_moments(server: Server, verb: str, room: Path, kills: int) -> tuple[int, int]:
    """Start a verb as a process and kill it at a random moment; returns how often it was killed, and broken."""
    whole = target(server, verb, room)
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from verbs import verbs; "
        "run = verbs(Path(sys.argv[2]))[sys.argv[3]]; print('go', flush=True); run(Path(sys.argv[4]))"
    )
    taken, killed, broken = None, 0, 0
    for number in range(kills + 1):
        folder = room / f"kill{number}"
        folder.mkdir()
        faults.old(verb, folder, server.room)
        words = [sys.executable, "-c", code, str(ROOT / "tests/faults"), str(server.room), verb, str(folder)]
        running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert running.stdout is not None and running.stdout.readline() == b"go\n"
        started = time.monotonic()
        if taken is None:  # the first one shows how long it takes
            running.wait()
            taken = time.monotonic() - started
        else:
            time.sleep(random.uniform(0, taken))
            running.send_signal(signal.SIGKILL)
            killed += running.wait() == -signal.SIGKILL
        found = faults.state(verb, folder, server.room)
        broken += found not in (whole["old"], whole["new"])
        shutil.rmtree(folder)
    return killed, broken


def target(server: Server, verb: str, room: Path) -> dict[str, object]:
    """The target before and after a run that nothing disturbs."""
    folder = room / "whole"
    folder.mkdir()
    faults.old(verb, folder, server.room)
    before = faults.state(verb, folder, server.room)
    answer = server.run(verb, folder)
    after = faults.state(verb, folder, server.room)
    shutil.rmtree(folder)
    return {"old": before, "new": after, "count": answer["count"]}


def main() -> None:
    """Parse the command line, run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="At random moments, of each verb.")
    parser.add_argument("--verb", choices=faults.VERBS, action="append", help="Only this one; repeatable.")
    arguments = parser.parse_args()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    total = 0
    with tempfile.TemporaryDirectory(prefix="edgedm-kills-", dir=memory) as scratch:
        room = Path(scratch)
        (room / "room").mkdir()
        server = Server(room / "room")
        print(f"{'verb':<10}{'points':>8}{'broken':>8}{'kills':>8}{'broken':>8}")
        for verb in arguments.verb or faults.VERBS:
            points, amiss = every_point(server, verb, room)
            kills, lost = random_moments(server, verb, room, arguments.kills)
            print(f"{verb:<10}{points:>8}{amiss:>8}{kills:>8}{lost:>8}", flush=True)
            total += amiss + lost
        server.process.communicate()
    sys.exit(1 if total else 0)


if __name__ == "__main__":
    main()
