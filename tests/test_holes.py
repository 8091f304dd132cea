"""Files that are nearly all hole are refused before anybody reads them to their end."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from edgedm import files
from edgedm.bundle import load
from edgedm.errors import InvalidModelError
from edgedm.models import load as load_checkpoint
from edgedm.models.importers.reading import read

SOUND = Path(__file__).parent / "attacks/files"
MIB, TIB = 1 << 20, 1 << 40


def written(path: Path, *parts: int) -> Path:
    """A file of so many MiB of data, of hole, of data and so on."""
    with path.open("wb") as stream:
        for number, size in enumerate(parts):
            if number % 2:
                stream.seek(size * MIB, os.SEEK_CUR)
            else:
                stream.write(b"x" * (size * MIB))
        stream.truncate()
    return path


@pytest.fixture
def small_bound(monkeypatch) -> None:
    monkeypatch.setattr(files, "MOST_HOLES", MIB)


@pytest.mark.usefixtures("small_bound")
@pytest.mark.parametrize("parts", [(0,), (1,), (3, 4), (1, 1, 1), (2, 3, 1), (9,)])
def test_a_file_may_have_as_much_hole_as_data_and_some_more(tmp_path, parts):
    path = written(tmp_path / "file", *parts)
    assert files.check_regular(path) == sum(parts) * MIB


@pytest.mark.usefixtures("small_bound")
@pytest.mark.parametrize("parts", [(0, 2), (1, 3), (1, 2, 1, 2)])
def test_a_file_with_more_hole_than_that_is_refused(tmp_path, parts):
    path = written(tmp_path / "file", *parts)
    with pytest.raises(InvalidModelError, match=rf"file: {sum(parts[::2]) * MIB} of its {sum(parts) * MIB} bytes"):
        files.check_regular(path)


@pytest.mark.usefixtures("small_bound")
def test_where_the_file_system_tells_nothing_all_is_data(tmp_path, monkeypatch):
    def refuse(*_: int) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    path = written(tmp_path / "file", 0, 9)
    monkeypatch.setattr(os, "lseek", refuse)
    assert files.check_regular(path) == 9 * MIB


def test_a_checkpoint_of_holes_is_refused(tmp_path):
    folder = shutil.copytree(SOUND / "checkpoint/sound", tmp_path / "checkpoint")
    os.truncate(folder / "model.safetensors", TIB)
    with pytest.raises(InvalidModelError, match=r"model\.safetensors: .* of its 1099511627776 bytes"):
        load_checkpoint(folder)


def test_a_bundle_of_holes_is_refused(tmp_path):
    folder = shutil.copytree(SOUND / "bundle/sound", tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    name = next(iter(manifest["files"]))
    os.truncate(folder / name, TIB)
    manifest["files"][name]["bytes"] = TIB
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidModelError, match=rf"{name}: .* of its 1099511627776 bytes"):
        load(folder)


def test_an_authors_checkpoint_of_holes_is_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"\x80\x02")
    os.truncate(path, TIB)
    with pytest.raises(InvalidModelError, match=r"model\.ckpt: .* of its 1099511627776 bytes"):
        read(path)
