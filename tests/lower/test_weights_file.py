"""weights.bin: constants once, what several variants read first, and each variant's own in pages of its own."""

import hashlib

import numpy as np

from edgedm.lower.weights import Weights
from edgedm.targets.android import PAGE_BYTES


def array(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def read(data: bytes, offset: int, like: np.ndarray) -> np.ndarray:
    return np.frombuffer(data, like.dtype, like.size, offset)


def test_one_variant_has_one_section_and_its_constants_where_add_said():
    weights = Weights()
    offsets = [weights.add(each) for each in (array(1, 2, 3), array(4), array(1, 2, 3))]
    assert offsets == [0, 64, 0]
    file = weights.file()
    assert file.moved == {0: 0, 64: 64}
    assert np.array_equal(read(file.data, 64, array(4)), [4])
    assert [(each.offset, each.bytes, each.readers) for each in file.sections] == [(0, 68, (0,))]
    assert file.sections[0].sha256 == hashlib.sha256(file.data).hexdigest()


def test_what_all_read_comes_first_and_the_rest_in_pages_of_its_own():
    weights = Weights()
    shared, own = array(*range(50)), {0: array(7, 8), 1: array(9), 2: array(7, 9)}
    places = {}
    for reader in (0, 1, 2):
        places[reader] = weights.add(own[reader], reader)
        common = weights.add(shared, reader)
    file = weights.file()
    assert [each.readers for each in file.sections] == [(0, 1, 2), (0,), (1,), (2,)]
    assert np.array_equal(read(file.data, file.moved[common], shared), shared)
    for reader, value in own.items():
        place = file.moved[places[reader]]
        section = next(each for each in file.sections if each.readers == (reader,))
        assert place == section.offset and place % PAGE_BYTES == 0
        assert np.array_equal(read(file.data, place, value), value)
        held = file.data[section.offset : section.offset + section.bytes]
        assert section.sha256 == hashlib.sha256(held).hexdigest()


def test_an_empty_constant_takes_no_place_from_another():
    weights = Weights()
    empty, one = weights.add(array()), weights.add(array(5))
    assert empty != one
    file = weights.file()
    assert np.array_equal(read(file.data, file.moved[one], array(5)), [5])


def test_a_model_without_constants_has_an_empty_file():
    file = Weights().file()
    assert (file.data, file.moved, file.sections) == (b"", {}, [])
