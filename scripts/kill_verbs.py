"""Kill every verb at random moments and let it fail at every change: python scripts/kill_verbs.py [--kills 100]

First each verb runs under the tests' shim (`tests/faults/shim.c`) once for every write, rename, fsync, creation and
removal below its target, killed before it, amid it, and refused as by a full disk; then it runs in a process of its own
that is killed after a random time, `--kills` times. After each the target must be the old one or the new one, whole.
Ends with 1 if it ever is not, or if a verb was done before it was hit so often that it was killed fewer times.
"""

import argparse
import random
import shutil
import sys
import tempfile
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
    """Kill a verb at random moments until it was at work in `kills` of them; returns that and how many broke it.

    The moments keep to how long it takes by now: the first run of a verb is its slowest.
    """
    whole, killed, broken = target(server, verb, room), 0, 0
    seconds = float(str(whole["seconds"]))
    for _ in range(faults.TRIES * kills):
        if killed + broken == kills:
            break
        try:
            at_work = faults.kill(server, verb, room, random.uniform(0, seconds), whole)
            seconds *= 1.02 if at_work else 0.9
            killed += at_work
        except AssertionError as error:
            broken += 1
            print(error, file=sys.stderr)
            shutil.rmtree(room / "killed")
    if killed + broken < kills:
        print(f"{verb}: hit in {killed + broken} of {kills} kills; try again on a quieter machine", file=sys.stderr)
    return killed, broken


def target(server: Server, verb: str, room: Path) -> dict[str, object]:
    """The target before and after a run that nothing disturbs, how many changes that has and how long it takes."""
    folder = room / "whole"
    folder.mkdir()
    faults.old(verb, folder, server.room)
    before = faults.state(verb, folder, server.room)
    answer = server.run(verb, folder, whole=True)
    after = faults.state(verb, folder, server.room)
    shutil.rmtree(folder)
    return {"old": before, "new": after, "count": answer["count"], "seconds": answer["seconds"]}


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
        print(f"{'verb':<15}{'points':>8}{'broken':>8}{'kills':>8}{'broken':>8}")
        for verb in arguments.verb or faults.VERBS:
            points, amiss = every_point(server, verb, room)
            kills, lost = random_moments(server, verb, room, arguments.kills)
            print(f"{verb:<15}{points:>8}{amiss:>8}{kills:>8}{lost:>8}", flush=True)
            total += amiss + arguments.kills - kills  # broken ones, or never hit
        server.process.communicate()
    sys.exit(1 if total else 0)


if __name__ == "__main__":
    main()
