"""Readers see the old target or the new one, never a mixture."""

import errno
import os
import resource

import pytest

from edgedm.atomic import atomic_dir, atomic_file, check_file_place, check_place, read_mark, write_scratch
from edgedm.errors import InvalidModelError


def test_a_file_appears_whole_when_the_block_ends(tmp_path):
    target = tmp_path / "sub" / "model.onnx"
    with atomic_file(target) as scratch:
        scratch.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_file_leaves_the_old_one_and_nothing_else(tmp_path):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as scratch:
        scratch.write_bytes(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "stale").write_text("old")
    with atomic_dir(target) as scratch:
        (scratch / "fresh").write_text("new")
    assert [path.name for path in target.iterdir()] == ["fresh"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_folder_stays_one_and_the_folder_is_replaced(tmp_path, there):
    (tmp_path / "disk").mkdir()
    if there:
        (tmp_path / "disk/bundle").mkdir()
        (tmp_path / "disk/bundle/stale").write_text("old")
    target = tmp_path / "bundle"
    target.symlink_to("disk/bundle")
    with atomic_dir(target) as scratch:
        (scratch / "fresh").write_text("new")
    assert target.is_symlink() and [path.name for path in (tmp_path / "disk/bundle").iterdir()] == ["fresh"]
    assert sorted(path.name for path in (*tmp_path.iterdir(), *(tmp_path / "disk").iterdir())) == [
        "bundle",
        "bundle",
        "disk",
    ]


def test_the_mask_is_asked_for_and_not_set(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)  # who sets it would fail
            with atomic_file(tmp_path / "file"):
                pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "stale").write_text("old")
    with pytest.raises(OSError, match="disk"), atomic_dir(target) as scratch:
        (scratch / "half").write_text("new")
        raise OSError("disk")
    assert [path.name for path in target.iterdir()] == ["stale"]
    assert list(tmp_path.iterdir()) == [target]


def test_new_files_and_folders_get_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    with atomic_file(tmp_path / "file"):
        pass
    with atomic_dir(tmp_path / "folder"):
        pass
    (tmp_path / "usual-folder").mkdir()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "usual-folder").stat().st_mode


def test_a_place_below_a_file_is_refused_before_anything_is_written_and_names_the_file(tmp_path):
    (tmp_path / "notes").write_text("mine")
    place = tmp_path / "notes" / "runs" / "model"
    for enter in (check_place, lambda path: atomic_file(path).__enter__(), lambda path: atomic_dir(path).__enter__()):
        with pytest.raises(InvalidModelError, match=r"notes/runs/model: .*/notes is a file"):
            enter(place)
    check_place(tmp_path / "new" / "folders" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_folder_does_not_become_a_file_nor_a_file_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidModelError, match="folder: is a folder"), atomic_file(tmp_path / "folder"):
        pass
    with pytest.raises(InvalidModelError, match="file: is a file"), atomic_dir(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_is_strange_is_never_replaced_and_it_is_said_why(tmp_path):
    def strange(folder):
        return None if (folder / "ours").is_file() else "has no ours"

    target = tmp_path / "photos"
    target.mkdir()
    with atomic_dir(target, strange) as scratch:  # it is empty
        (scratch / "cat.png").write_text("mine")
    with pytest.raises(InvalidModelError, match=r"photos: holds other files \(it has no ours\)"):
        atomic_dir(target, strange).__enter__()
    assert (target / "cat.png").read_text() == "mine" and list(tmp_path.iterdir()) == [target]
    (target / "ours").touch()
    with atomic_dir(target, strange):
        pass
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"[" * 100_000, b"\xff", b'{"format": "a"}' + b" " * 1000])
def test_a_mark_that_is_no_small_object_is_an_empty_one(tmp_path, content):
    if content is not None:
        (tmp_path / "mark").write_bytes(content)
    assert read_mark(tmp_path / "mark", 200_000 if content and content[:1] == b"[" else 1000) == {}
    (tmp_path / "mark").write_text('{"format": "a"}')
    assert read_mark(tmp_path / "mark", 15) == {"format": "a"}


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_refused_and_stays(tmp_path, linked):
    pipe = target = tmp_path / "images.png"
    os.mkfifo(pipe)
    if linked:
        target = tmp_path / "link.png"
        target.symlink_to(pipe)
    for enter in (check_file_place, lambda path: atomic_file(path).__enter__()):
        with pytest.raises(
            InvalidModelError, match=rf"{target.name}: is a pipe or device; expected a name for a file$"
        ):
            enter(target)
    for enter in (check_place, lambda path: atomic_dir(path).__enter__()):
        with pytest.raises(InvalidModelError, match=r"\.png: is a pipe or device"):
            enter(target)
    assert pipe.is_fifo() and len(list(tmp_path.iterdir())) == 1 + linked


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_file_or_to_nothing_is_replaced_by_the_file(tmp_path, there):
    led_to, target = tmp_path / "led-to", tmp_path / "model.onnx"
    if there:
        led_to.write_text("old")
    target.symlink_to(led_to)
    with atomic_file(target) as scratch:
        scratch.write_text("new")
    assert target.read_text() == "new" and not target.is_symlink()
    assert led_to.exists() == there


def _write_file(target, data):
    with atomic_file(target) as scratch:
        scratch.write_bytes(data)


def _write_folder(target, data):
    with atomic_dir(target) as scratch:
        (scratch / "weights").write_bytes(data)


@pytest.mark.parametrize("write", [_write_file, _write_folder, write_scratch])
def test_a_write_that_the_disk_refuses_names_the_target(tmp_path, write):
    target = tmp_path / "deploy.onnx"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # stands for a full disk
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write(target, bytes(8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(target)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_refusal_of_a_disk_is_not_said_to_be_one_of_the_target(tmp_path):
    with pytest.raises(BrokenPipeError) as caught, atomic_file(tmp_path / "model.onnx"):
        raise BrokenPipeError(errno.EPIPE, "a compiler went away")
    assert caught.value.filename is None


@pytest.mark.parametrize("write", [atomic_file, atomic_dir])
def test_a_folder_that_refuses_is_told_with_the_name_that_was_asked_for(tmp_path, monkeypatch, write):
    def refuse(dir, prefix, suffix=""):
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/{prefix}x1y2{suffix}")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(PermissionError) as refused, write(tmp_path / "model.onnx"):
        pass
    assert refused.value.filename == str(tmp_path / "model.onnx")


def test_a_file_that_is_missing_inside_is_named_by_its_place_and_a_neighbour_by_its_own(tmp_path):
    neighbour = tmp_path / ".model.d" / "input.json"
    with pytest.raises(FileNotFoundError) as missing, atomic_dir(tmp_path / "model") as scratch:
        (scratch / "src/kernels.o").read_bytes()
    assert missing.value.filename == str(tmp_path / "model/src/kernels.o")
    with pytest.raises(FileNotFoundError) as missing, atomic_dir(tmp_path / "model"):
        neighbour.read_bytes()
    assert missing.value.filename == str(neighbour)
