"""Files that belong together are all new or all old, whoever looks."""

import hashlib
import json
import os

import pytest

from edgedm import atomic_files
from edgedm.atomic_files import check_settled, settle, write_together
from edgedm.errors import InvalidModelError

NAMES = ("m.onnx", "m.prepare.onnx", "m.golden.safetensors")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def files(tmp_path):
    return {tmp_path / name: name.encode() for name in NAMES}


def test_all_appear_and_nothing_else(tmp_path, files):
    write_together(files)
    assert contents(tmp_path) == {name: name.encode() for name in NAMES}


def test_a_companion_of_earlier_ones_goes(tmp_path, files):
    write_together(files)
    write_together({tmp_path / name: b"new" for name in NAMES[:2]})
    assert contents(tmp_path) == dict.fromkeys(NAMES[:2], b"new")
    write_together({tmp_path / NAMES[0]: b"alone"})
    assert contents(tmp_path) == {NAMES[0]: b"alone"}


def test_a_companion_that_is_a_link_goes_and_what_it_leads_to_stays(tmp_path, files):
    write_together(files)
    (tmp_path / "old.dec").write_bytes(b"old")
    (tmp_path / "m.decoder.onnx").symlink_to("old.dec")
    (tmp_path / "m.layers.safetensors").symlink_to("nowhere")
    write_together({tmp_path / NAMES[0]: b"alone"})
    assert contents(tmp_path) == {NAMES[0]: b"alone", "old.dec": b"old"}


@pytest.mark.parametrize("stop", range(4))
def test_a_writer_that_ends_between_two_renames_has_written_all(tmp_path, files, stop, monkeypatch):
    write_together(dict.fromkeys(files, b"old"))
    done, real = [], os.replace

    def replace(*names):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(names)
        real(*names)

    monkeypatch.setattr(atomic_files.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_together(files)
    monkeypatch.undo()
    settle(tmp_path / NAMES[0])
    found = contents(tmp_path)
    if stop == 0:  # the journal was not there yet, and nothing of the new ones is left
        assert found == dict.fromkeys(NAMES, b"old")
    else:
        assert found == {name: name.encode() for name in NAMES}


@pytest.mark.parametrize("after", range(4))
def test_a_reader_refuses_what_is_half_renamed_and_changes_nothing(tmp_path, files, after, monkeypatch):
    write_together({**dict.fromkeys(files, b"old"), tmp_path / "m.layers.safetensors": b"old"})
    done, real = [], os.replace

    def replace(*names):
        real(*names)
        done.append(names)
        if len(done) == after + 1:
            raise KeyboardInterrupt  # the name has changed, and Python doesn't know yet

    monkeypatch.setattr(atomic_files.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_together(files)
    before = contents(tmp_path)
    with pytest.raises(InvalidModelError, match=r"m\.onnx: a write of it .* was cut short"):
        check_settled(tmp_path / NAMES[0])
    assert contents(tmp_path) == before
    settle(tmp_path / NAMES[0])
    check_settled(tmp_path / NAMES[0])
    assert contents(tmp_path) == {name: name.encode() for name in NAMES}


def leave_journal(folder, *entries):
    (folder / ".m.onnx.commit").write_text(json.dumps({"files": entries}))


def digest(name):
    return hashlib.sha256(name.encode()).hexdigest()


def test_a_reader_takes_what_is_renamed_whole_though_its_journal_is_left(tmp_path, files):
    write_together(files)
    leave_journal(tmp_path, [".m.onnx.x", "m.onnx", digest("m.onnx")], ["", "m.decoder.onnx", ""])
    check_settled(tmp_path / NAMES[0])


def test_a_scratch_that_somebody_removed_is_not_taken_for_a_renamed_one(tmp_path, files):
    """The old file is still there, beside new ones."""
    write_together(files)
    leave_journal(tmp_path, *([f".{name}.x", name, digest(name if name != NAMES[1] else "new")] for name in NAMES))
    for _ in range(2):
        with pytest.raises(InvalidModelError, match="was cut short"):
            check_settled(tmp_path / NAMES[0])
        settle(tmp_path / NAMES[0])  # which cannot finish it, and so does not forget it
    write_together(files)
    check_settled(tmp_path / NAMES[0])
    assert contents(tmp_path) == {name: name.encode() for name in NAMES}


def test_a_reader_refuses_where_a_part_that_the_journal_names_is_gone(tmp_path, files):
    write_together(files)
    (tmp_path / NAMES[2]).unlink()
    leave_journal(tmp_path, [f".{NAMES[2]}.x", NAMES[2], digest(NAMES[2])])
    with pytest.raises(InvalidModelError, match="was cut short"):
        check_settled(tmp_path / NAMES[0])
    write_together(files)
    check_settled(tmp_path / NAMES[0])
    assert contents(tmp_path) == {name: name.encode() for name in NAMES}


def test_a_journal_without_hashes_is_finished_as_one_with_them(tmp_path, files):
    """Such as earlier versions wrote."""
    write_together({**dict.fromkeys(files, b"old"), tmp_path / "m.decoder.onnx": b"old"})
    for name in NAMES[1:]:  # the first is renamed
        (tmp_path / f".{name}.x").write_bytes(name.encode())
    (tmp_path / NAMES[0]).write_bytes(NAMES[0].encode())
    leave_journal(tmp_path, *([f".{name}.x", name] for name in NAMES), ["", "m.decoder.onnx"])
    with pytest.raises(InvalidModelError, match="was cut short"):
        check_settled(tmp_path / NAMES[0])
    settle(tmp_path / NAMES[0])
    assert contents(tmp_path) == {name: name.encode() for name in NAMES}


def test_a_journal_without_hashes_of_which_a_part_is_gone_is_refused(tmp_path):
    (tmp_path / NAMES[0]).write_bytes(b"graph")
    leave_journal(tmp_path, *([f".{name}.x", name] for name in NAMES[:2]))
    with pytest.raises(InvalidModelError, match="was cut short"):
        check_settled(tmp_path / NAMES[0])


@pytest.mark.parametrize("gone", range(3))
@pytest.mark.parametrize("ends", [None, b"another"], ids=["removed", "replaced"])
def test_where_a_part_is_lost_the_old_ones_stay_until_all_are_written_anew(tmp_path, files, gone, ends):
    write_together({**dict.fromkeys(files, b"old"), tmp_path / "m.decoder.onnx": b"old"})
    for name in NAMES:
        (tmp_path / f".{name}.x").write_bytes(name.encode())
    leave_journal(tmp_path, ["", "m.decoder.onnx", ""], *([f".{name}.x", name, digest(name)] for name in NAMES))
    lost = tmp_path / f".{NAMES[gone]}.x"
    lost.unlink()
    if ends is not None:
        lost.write_bytes(ends)
    before = contents(tmp_path)
    settle(tmp_path / NAMES[0])
    assert contents(tmp_path) == before
    with pytest.raises(InvalidModelError, match="was cut short"):
        check_settled(tmp_path / NAMES[0])
    write_together(files)
    assert contents(tmp_path) == {name: name.encode() for name in NAMES}


def test_a_graph_written_alone_leaves_nothing_of_a_write_that_lost_a_part(tmp_path, files):
    write_together(dict.fromkeys(files, b"old"))
    for name in NAMES[1:]:  # the first is lost
        (tmp_path / f".{name}.x").write_bytes(name.encode())
    leave_journal(tmp_path, *([f".{name}.x", name, digest(name)] for name in NAMES))
    write_together({tmp_path / NAMES[0]: b"alone"})
    check_settled(tmp_path / NAMES[0])
    assert contents(tmp_path) == {NAMES[0]: b"alone"}


def test_a_writer_whose_part_somebody_removes_says_so(tmp_path, files, monkeypatch):
    write_together(dict.fromkeys(files, b"old"))

    def remove(folder):
        for path in folder.glob(f".{NAMES[1]}.*"):
            path.unlink()

    monkeypatch.setattr(atomic_files, "sync_folder", remove)
    with pytest.raises(InvalidModelError, match="was cut short"):
        write_together(files)
    assert {name: contents(tmp_path)[name] for name in NAMES} == dict.fromkeys(NAMES, b"old")


def test_the_next_writer_finishes_the_one_before(tmp_path, files, monkeypatch):
    def stop(main):
        if atomic_files._journal(main).is_file():
            raise KeyboardInterrupt

    def full(*_):
        raise OSError

    monkeypatch.setattr(atomic_files, "_finish", stop)
    with pytest.raises(KeyboardInterrupt):
        write_together(files)
    monkeypatch.undo()
    assert not (tmp_path / NAMES[0]).exists()
    monkeypatch.setattr(atomic_files, "write_scratch", full)
    with pytest.raises(OSError):
        write_together({tmp_path / NAMES[0]: b"newest"})
    assert contents(tmp_path) == {name: name.encode() for name in NAMES}


def test_a_folder_in_the_way_is_named_before_anything_is_written(tmp_path, files):
    (tmp_path / NAMES[1]).mkdir()
    with pytest.raises(InvalidModelError, match=r"prepare\.onnx: is a folder"):
        write_together(files)
    assert [path.name for path in tmp_path.iterdir()] == [NAMES[1]]


STRANGERS = ("other", "mm.onnx", ".m.onnx.x", "m.safetensors", "m.py", ".m.py.x")


@pytest.mark.parametrize(
    "entry",
    [
        [".m.onnx.x", "../other", ""],
        ["../.m.onnx.x", "m.onnx", ""],
        ["", "other", ""],
        ["other", "m.onnx", ""],
        [".m.onnx.x", "mm.onnx", ""],
        ["", "/etc/passwd", ""],
        ["", "m.safetensors", ""],
        ["", "m.py", ""],
        [".m.py.x", "m.py", ""],
        ["", "m.py"],
        ["other", "m.onnx"],
        [".m.onnx.x"],
        [1, 2, 3],
        "m.onnx",
    ],
)
def test_a_strange_journal_renames_and_removes_nothing(tmp_path, entry):
    (tmp_path / "a").mkdir()
    before = {tmp_path / "a" / name: name.encode() for name in STRANGERS}
    for path in [*before, tmp_path / "other"]:
        path.write_bytes(path.name.encode())
    leave_journal(tmp_path / "a", entry)
    check_settled(tmp_path / "a/m.onnx")
    settle(tmp_path / "a/m.onnx")
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert (tmp_path / "other").read_bytes() == b"other"


def test_a_name_that_the_journal_would_not_take_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"m\.golden.*no companion of m\.onnx"):
        write_together({tmp_path / "m.onnx": b"graph", tmp_path / "m.golden": b"data"})
    assert not list(tmp_path.iterdir())
