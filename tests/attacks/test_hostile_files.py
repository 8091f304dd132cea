"""Every hostile file of this folder is refused by name and for its own reason, within bounds of memory and time."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from guard import FILES, place

MOST_KIB, MOST_SECONDS = 64 << 10, 15  # a loaded machine takes a while to fork
REASONS: dict[str, str] = json.loads((Path(__file__).parent / "reasons.json").read_text())
"""File -> what the refusal must say."""


def found() -> list[str]:
    return sorted(
        path.relative_to(FILES).as_posix()
        for path in FILES.rglob("*")
        if path.is_file() and path.parent.name != "sound"
    )


def check(answer: dict, where: Path, reason: str) -> None:
    assert answer["ours"], answer
    assert str(where) in answer["message"] and reason in answer["message"], answer["message"]
    assert answer["kib"] < MOST_KIB and answer["seconds"] < MOST_SECONDS, answer


@pytest.mark.parametrize("name", found())
def test_a_hostile_file_is_refused_for_its_reason(guard, tmp_path, name) -> None:
    loader = name.partition("/")[0]
    path = place(loader, FILES / name, tmp_path)
    check(guard.open(loader, path), path, REASONS[name])


@pytest.mark.parametrize("loader", ["checkpoint", "bundle"])
def test_the_sound_folder_that_the_others_differ_from_is_accepted(guard, loader) -> None:
    assert guard.open(loader, FILES / loader / "sound")["kind"] == "accepted"


def test_every_reason_is_of_a_file() -> None:
    assert sorted(REASONS) == found()


def symbolic(target: Path, place: Path) -> None:
    place.symlink_to(target)


def chain(target: Path, place: Path) -> None:
    """A link within the folder to one that leaves it."""
    place.with_name("step").symlink_to(target)
    place.symlink_to("step")


def relative(target: Path, place: Path) -> None:
    place.symlink_to(os.path.relpath(target, place.parent))


def loop(target: Path, place: Path) -> None:
    place.symlink_to(place)


def dangling(target: Path, place: Path) -> None:
    place.symlink_to(target.with_name("nowhere"))


def pipe(target: Path, place: Path) -> None:
    os.mkfifo(place)


def device(target: Path, place: Path) -> None:
    place.symlink_to("/dev/zero")


def folder(target: Path, place: Path) -> None:
    place.mkdir()


PLACES = [symbolic, chain, relative, loop, dangling, pipe, device, folder]


@pytest.mark.parametrize("kind", PLACES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_checkpoint_ends_at_its_own_files(guard, tmp_path, kind, name) -> None:
    target = Path(shutil.copytree(FILES / "checkpoint/sound", tmp_path / "c"))
    (target / name).rename(tmp_path / name)
    kind(tmp_path / name, target / name)
    check(guard.open("checkpoint", target), target / name, "")


@pytest.mark.parametrize("kind", PLACES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["manifest.json", "weights.bin"])
def test_a_bundle_ends_at_its_own_files(guard, tmp_path, kind, name) -> None:
    target = Path(shutil.copytree(FILES / "bundle/sound", tmp_path / "b"))
    (target / name).rename(tmp_path / name)
    kind(tmp_path / name, target / name)
    check(guard.open("bundle", target), target, "")


def test_a_hard_link_is_no_file_of_a_bundle(guard, tmp_path) -> None:
    target = Path(shutil.copytree(FILES / "bundle/sound", tmp_path / "b"))
    (target / "weights.bin").rename(tmp_path / "weights.bin")
    os.link(tmp_path / "weights.bin", target / "weights.bin")
    check(guard.open("bundle", target), target / "weights.bin", "link")


def test_a_linked_folder_and_a_socket_are_additional_files_of_a_bundle(guard, tmp_path, monkeypatch) -> None:
    target = Path(shutil.copytree(FILES / "bundle/sound", tmp_path / "b"))
    (target / "lib").symlink_to("/etc")
    check(guard.open("bundle", target), target, "unknown ['lib']")
    (target / "lib").unlink()
    monkeypatch.chdir(target)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s")
    check(guard.open("bundle", target), target, "unknown ['s']")


def test_a_hubs_cache_may_link_into_its_blobs_and_nowhere_else(guard, tmp_path) -> None:
    snapshot, blobs = tmp_path / "models--x/snapshots/0123", tmp_path / "models--x/blobs"
    shutil.copytree(FILES / "checkpoint/sound", blobs)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert guard.open("checkpoint", snapshot)["kind"] == "accepted"
    (snapshot / "config.json").unlink()
    shutil.copyfile(blobs / "config.json", tmp_path / "config.json")
    (snapshot / "config.json").symlink_to("../../../config.json")
    check(guard.open("checkpoint", snapshot), snapshot / "config.json", "a link that leaves")


@pytest.mark.parametrize("loader", ["graph", "golden", "array", "tuning", "gate", "authors", "pair", "decoder"])
@pytest.mark.parametrize("kind", [loop, dangling, pipe, device, folder], ids=lambda kind: kind.__name__)
def test_what_is_no_file_is_never_read(guard, tmp_path, loader, kind) -> None:
    path = tmp_path / "x.safetensors"
    kind(tmp_path / "target", path)
    where = path.with_suffix(".decoder.onnx") if loader == "decoder" else path
    said = "expected a file" if loader in ("graph", "authors", "golden", "array") else ""
    check(guard.open(loader, path), where, said)


@pytest.mark.parametrize("kind", [symbolic, chain, relative, loop, device], ids=lambda kind: kind.__name__)
def test_the_features_that_a_gate_names_lie_beside_it(guard, tmp_path, kind) -> None:
    (tmp_path / "gate").mkdir()
    (tmp_path / "net.onnx").write_bytes(b"somebody's")
    (tmp_path / "gate/gate.toml").write_text("features = 'net.onnx'\n")
    assert guard.open("gate", tmp_path / "gate/gate.toml")["kind"] == "accepted"  # missing: said when it is read
    kind(tmp_path / "net.onnx", tmp_path / "gate/net.onnx")
    check(guard.open("gate", tmp_path / "gate/gate.toml"), tmp_path / "gate/net.onnx", "")


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_file_of_more_bytes_than_any_sound_one_is_not_read(guard, tmp_path, name) -> None:
    """One byte more, nearly all of it a hole, but a hole small enough to be let through."""
    loader = "checkpoint" if name == "config.json" else "bundle"
    target = Path(shutil.copytree(FILES / loader / "sound", tmp_path / loader))
    with (target / name).open("ab") as stream:
        stream.truncate((64 << 20) + 1)
    check(guard.open(loader, target), target / name, "expected at most")


@pytest.mark.parametrize("suffix", ["onnx", "safetensors"])
def test_a_sparse_file_of_a_terabyte_is_not_read(guard, tmp_path, suffix) -> None:
    path = tmp_path / f"x.{suffix}"
    path.touch()
    os.truncate(path, 1 << 40)
    check(guard.open("graph" if suffix == "onnx" else "golden", path), path, "")


@pytest.mark.parametrize("loader", ["graph", "pair"])
@pytest.mark.parametrize("target", ["model.golden.safetensors", "model.safetensors", "model.py", "model.onnx"])
def test_a_journal_that_came_with_a_folder_changes_nothing_in_it(guard, tmp_path, loader, target) -> None:
    """Writers leave one when they are killed; a stranger's may ask for anything."""
    for name in ("model.onnx", "model.golden.safetensors", "model.safetensors", "model.py", ".model.onnx.x"):
        (tmp_path / name).write_bytes(name.encode())
    scratch = ".model.onnx.x" if target == "model.onnx" else ""
    (tmp_path / ".model.onnx.commit").write_text(json.dumps({"files": [[scratch, target, "0" * 64]]}))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    reason = "cut short" if target in ("model.onnx", "model.golden.safetensors") else "not an ONNX file"
    check(guard.open(loader, tmp_path / "model.onnx"), tmp_path / "model.onnx", reason)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("loader", "name"), [("checkpoint", "config.json"), ("bundle", "manifest.json")])
def test_a_name_that_stands_twice_among_a_hundred_thousand_is_found_at_once(guard, tmp_path, loader, name) -> None:
    target = Path(shutil.copytree(FILES / loader / "sound", tmp_path / loader))
    names = [f"{number:05x}" for number in range(90_000)]
    (target / name).write_text("{" + ",".join(f'"{each}":0' for each in (*names, names[-1])) + "}")
    answer = guard.open(loader, target)
    check(answer, target / name, f"the name {names[-1]!r} stands twice")
    assert answer["seconds"] < 5, answer


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_called_snapshots_makes_no_hubs_cache_of_what_is_above_it(guard, tmp_path, name) -> None:
    target = Path(shutil.copytree(FILES / "checkpoint/sound", tmp_path / "home/snapshots/monday/c"))
    (target / name).rename(tmp_path / "home" / name)
    (target / name).symlink_to(tmp_path / "home" / name)
    check(guard.open("checkpoint", target), target / name, "leaves")


@pytest.mark.parametrize("place", ["models--x/other", "models--x/snapshots/4567", "models--y/blobs"])
def test_a_hubs_snapshot_ends_at_its_own_models_blobs(guard, tmp_path, place) -> None:
    snapshot = Path(shutil.copytree(FILES / "checkpoint/sound", tmp_path / "models--x/snapshots/0123"))
    (tmp_path / place).mkdir(parents=True)
    (snapshot / "config.json").rename(tmp_path / place / "config.json")
    (snapshot / "config.json").symlink_to(tmp_path / place / "config.json")
    check(guard.open("checkpoint", snapshot), snapshot / "config.json", "leaves")
