"""A .npy file is the array that was asked for, or it is refused by name whatever its bytes."""

import numpy as np
import pytest

from edgedm.arrays import read_array
from edgedm.conditions import read_condition
from edgedm.errors import InvalidModelError
from edgedm.images import read_start

FIELDS = "'descr': '<f4', 'fortran_order': False"


def npy(header: str) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


BROKEN = {
    "empty": b"",
    "text": b"no array",
    "pickle": b"\x80\x04abc",
    "zip": b"PK\x03\x04 and no archive",
    "version": b"\x93NUMPY\x09\x00",
    "header that does not end": npy(f"{{{FIELDS}, 'shape': (1,\n"),
    "header badly indented": npy("  {'descr'\n : 1}\n   x\n y"),
    "keys of two types": npy(f"{{1: 2, {FIELDS}, 'shape': (2, 3)}}\n"),
    "a list as key": npy("{[1]: 2}\n"),
    "minus minus": npy(f"{{{FIELDS}, 'shape': ({'-' * 4000}1,)}}\n"),
    "petabytes": npy(f"{{{FIELDS}, 'shape': ({10**15},)}}\n"),
    "more than a long": npy(f"{{{FIELDS}, 'shape': ({10**25},)}}\n"),
    "negative": npy(f"{{{FIELDS}, 'shape': (-1,)}}\n"),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"),
    "no numbers": npy(f"{{{FIELDS}, 'shape': (2, 3)}}\n"),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.npy"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"condition: .*broken\.npy: expected a whole \.npy array"):
        read_condition(path, (2, 3))
    with pytest.raises(InvalidModelError, match=r"start: .*broken\.npy: expected a whole \.npy array"):
        read_start(path, 1, (2, 3))


def test_a_missing_file_and_an_archive_are_refused_by_name(tmp_path):
    with pytest.raises(InvalidModelError, match=r"start: .*none\.npy: No such file"):
        read_array(tmp_path / "none.npy", "start", (2, 3))
    np.savez(tmp_path / "two.npz", np.zeros(1), np.zeros(2))
    with pytest.raises(InvalidModelError, match=r"two\.npz: expected one array \(\.npy\), got an archive"):
        read_array(tmp_path / "two.npz", "start", (2, 3))


@pytest.mark.parametrize("order", ["C", "F"])
def test_bytes_beyond_the_array_are_refused(tmp_path, order):
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32, order))
    assert read_array(tmp_path / "a.npy", "start", (2, 3)).shape == (2, 3)
    with (tmp_path / "a.npy").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InvalidModelError, match=r"a\.npy: holds more bytes than its shape says"):
        read_array(tmp_path / "a.npy", "start", (2, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    np.save(tmp_path / "a.npy", np.array([[0, 1, 2], [3, value, 5]], np.float32))
    for read in (lambda path: read_condition(path, (2, 3)), lambda path: read_start(path, 2, (3,))):
        with pytest.raises(InvalidModelError, match=r"a\.npy: holds NaN or infinity"):
            read(tmp_path / "a.npy")


@pytest.mark.parametrize("array", [np.zeros((3, 2), np.float32), np.zeros((2, 3)), np.zeros((2, 3), ">f4")])
def test_another_shape_or_dtype_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InvalidModelError, match=r"a\.npy: expected float32\[2, 3\], got .*\[\d, \d\]"):
        read_array(tmp_path / "a.npy", "start", (2, 3))


def test_a_good_array_is_read_as_it_is_and_does_not_depend_on_the_file(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    np.save(tmp_path / "a.npy", np.asfortranarray(values))
    found = [read_condition(tmp_path / "a.npy", (2, 3)), read_start(tmp_path / "a.npy", 1, (2, 3))]
    np.save(tmp_path / "a.npy", -values)
    assert np.array_equal(found[0], values[0]) and np.array_equal(found[1], values)
    assert read_start(None, 1, (2, 3)) is None
