"""Whatever write, rename or fsync of a verb fails or is its last: the target is the old one or the new one, whole."""

import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from verbs import FILES, SOUND

from edgedm.atomic_files import settle
from edgedm.bundle import load

pytestmark = pytest.mark.slow  # what the verbs read takes a minute to make

MOST = 40  # points of a verb and mode that are all tried here; scripts/kill_verbs.py tries every one of every verb
SPREAD, LAST = 8, 12  # of a verb with more (compile, which writes a folder): some, and those where names change
LEAST = {
    "import": 8,
    "quantize": 8,
    "export": 15,
    "optimize": 20,
    "optimize --dump": 5,
    "compile": 100,
    "sample": 5,
    "edgedm-sample": 2,
    "verify": 15,
    "sign": 5,
    "demo": 10,
    "web": 5,
    "package": 5,
    "training": 10,
}
"""Changes that the shim sees at least of each verb; of the C runtime's it sees fsync and rename alone."""
VERBS = tuple(LEAST)
KILLS = 3  # at random moments, of each verb; likewise
TRIES = 50  # times the kills that are asked for: a verb may be done before it is hit, one in C after half a ms
KIND = re.compile("OSError|EdgedmError")  # what the command line says in a line of its own
MODES = {"k": "killed before", "h": "killed amid", "e": "on a full disk from"}


def old(verb: str, folder: Path, room: Path) -> None:
    """Put another artefact of the same kind at the target."""
    if verb in ("import", "quantize"):
        shutil.copytree(SOUND, folder / "checkpoint")
        config = folder / "checkpoint/config.json"
        config.write_text(config.read_text().replace('"steps_offset": 0', '"steps_offset": 1') + " ")
    elif verb in ("export", "optimize"):
        stem = "model" if verb == "export" else "deploy"
        for path in room.glob(f"{stem}.*"):
            if path.is_file():
                (folder / path.name).write_bytes(b"old " + path.read_bytes()[:100])
        (folder / f"{stem}.layers.safetensors").write_bytes(b"old")
    elif verb in ("compile", "sign"):
        shutil.copytree(room / "model.bundle", folder / "model.bundle")
        if verb == "compile":
            (folder / "model.bundle/src/model.c").write_bytes(b"old")
    else:
        for name in FILES[verb]:
            (folder / name).write_bytes(b"old")


def state(verb: str, folder: Path, room: Path) -> object:
    """All that a reader of the target sees; a signature, which never comes out the same twice, as its verdict."""
    if verb in ("export", "optimize"):
        settle(folder / ("model.onnx" if verb == "export" else "deploy.onnx"))
    if verb == "sign" and (folder / "model.bundle/model.sig").exists():
        load(folder / "model.bundle", signed_by=room / "key.pub")
        return "signed"
    files = [path for path in folder.rglob("*") if path.is_file()]
    named = {path.relative_to(folder): path for path in files}
    return {str(name): path.read_bytes() for name, path in named.items() if not name.parts[0].startswith(".")}


def is_whole(verb: str, found: object, old: object, new: object) -> bool:
    """Whether a target is the old one or the new one."""
    if verb in FILES:
        return all(found.get(name) in (old.get(name), new.get(name)) for name in FILES[verb])
    return found in (old, new)


def points(count: int) -> list[int]:
    """Numbers of changes, from 1 to `count`."""
    if count <= MOST:
        return list(range(1, count + 1))
    spread = {1 + index * (count - LAST - 1) // (SPREAD - 1) for index in range(SPREAD)}
    return sorted(spread | set(range(count - LAST + 1, count + 1)))


def kill(server, verb: str, room: Path, seconds: float, whole: dict[str, object]) -> bool:
    """Let a verb do all its work for so long; returns whether it was still at it."""
    folder = room / "killed"
    folder.mkdir()
    old(verb, folder, server.room)
    answer = server.run(verb, folder, whole=True, seconds=seconds)
    assert answer.get("error", "") == ""
    assert is_whole(verb, state(verb, folder, server.room), whole["old"], whole["new"]), (
        f"{verb} killed after {seconds} s"
    )
    shutil.rmtree(folder)
    return bool(answer["killed"])


def check(server, verb: str, room: Path, mode: str, at: int, whole: dict[str, object]) -> None:
    folder = room / f"{mode}{at}"
    folder.mkdir()
    old(verb, folder, server.room)
    answer = server.run(verb, folder, at, mode)
    found = state(verb, folder, server.room)
    assert is_whole(verb, found, whole["old"], whole["new"]), f"{verb} {MODES[mode]} change {at}"
    if mode == "e":
        left, error = [path.name for path in folder.rglob(".*")], answer["error"]
        assert not left, left
        if found != whole["new"]:
            assert KIND.match(error) and "No space left" in error and str(folder) in error, error
    else:
        assert answer["killed"]
    if at == whole["count"]:
        assert server.run(verb, folder)["error"] == ""  # and another try succeeds
        assert state(verb, folder, server.room) == whole["new"]
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def whole(server, memory):
    """Verb -> the target before and after, and how many changes lie between."""

    def run(verb):
        folder = memory / f"whole-{verb}"
        folder.mkdir()
        old(verb, folder, server.room)
        before = state(verb, folder, server.room)
        answer = server.run(verb, folder, whole=True)
        assert answer["error"] == "" and answer["count"] >= LEAST[verb]
        after = state(verb, folder, server.room)
        assert before != after
        again = memory / f"again-{verb}"
        again.mkdir()
        old(verb, again, server.room)
        assert server.run(verb, again)["count"] == answer["count"]  # it writes nowhere but at its end
        return {"old": before, "new": after, "count": answer["count"], "seconds": answer["seconds"]}

    return {verb: run(verb) for verb in VERBS}


@pytest.mark.parametrize("mode", MODES, ids=MODES.values())
@pytest.mark.parametrize("verb", VERBS)
def test_the_target_is_the_old_one_or_the_new_one(server, whole, folder, verb, mode):
    for at in points(whole[verb]["count"]):
        check(server, verb, folder, mode, at, whole[verb])


@pytest.mark.parametrize("verb", VERBS)
def test_a_first_artefact_is_there_whole_or_not_at_all(server, whole, folder, verb):
    if verb == "sign":  # it has no target without a bundle
        return
    count = server.run(verb, folder)["count"]
    for at in points(count) if count <= MOST else {*points(count)[::4], count}:
        place = folder / f"new{at}"
        place.mkdir()
        assert server.run(verb, place, at, "k")["killed"]
        found = state(verb, place, server.room)
        assert is_whole(verb, found, {}, whole[verb]["new"]), f"{verb} killed before change {at}"


def test_two_processes_that_write_the_same_target_leave_one_of_both(folder):
    """Folders and groups of files, in turns that overlap at random."""
    script = """
import sys
from pathlib import Path
from edgedm.atomic import atomic_dir
from edgedm.atomic_files import write_together
folder, mark = Path(sys.argv[1]), sys.argv[2].encode()
for turn in range(60):
    with atomic_dir(folder / "bundle") as scratch:
        for name in "abc":
            (scratch / name).write_bytes(mark * 1000)
    write_together({folder / f"m.{name}": mark * 1000 for name in ("onnx", "prepare.onnx", "golden.safetensors")})
"""
    running = [subprocess.Popen([sys.executable, "-c", script, str(folder), mark]) for mark in "xy"]
    seen = set()
    while any(each.poll() is None for each in running):
        bundle = folder / "bundle"
        if seen:
            assert bundle.is_dir()  # once there, never gone
        if bundle.is_dir():
            seen.add(bundle)
    assert [each.returncode for each in running] == [0, 0]
    for names in (["bundle/a", "bundle/b", "bundle/c"], ["m.onnx", "m.prepare.onnx", "m.golden.safetensors"]):
        assert {(folder / name).read_bytes() for name in names} in ({b"x" * 1000}, {b"y" * 1000})
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_may_not_be_written_is_said_and_left_alone(server, whole, folder, verb):
    """The shim refuses what a read-only file system does, because nothing else keeps root out."""
    old(verb, folder, server.room)
    answer = server.run(verb, folder, 1, "r")
    assert "Read-only file system" in answer["error"], answer
    assert "/." not in answer["error"]  # what is asked for is named, no temporary
    assert state(verb, folder, server.room) == whole[verb]["old"]
    assert server.run(verb, folder)["error"] == ""


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "edgedm-sample"])
def test_a_verb_that_is_killed_at_random_moments_leaves_a_whole_target(server, whole, folder, verb):
    """Not the C program, done in half a millisecond and too soon to be hit for certain; the test above is its own."""
    moments, hit = random.Random(verb), 0
    for _ in range(TRIES * KILLS):
        hit += kill(server, verb, folder, moments.uniform(0, whole[verb]["seconds"]), whole[verb])
        if hit == KILLS:
            break
    assert hit == KILLS
