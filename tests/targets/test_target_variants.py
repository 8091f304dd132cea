"""Which targets one bundle may hold, and in which order."""

import pytest

from edgedm.errors import UnsupportedError
from edgedm.targets import common_ground, resolve, resolve_variants


@pytest.mark.parametrize("names", ["x86-64-v2, x86-64-v4+vnni,x86-64-v3", ["x86-64-v3", "x86-64-v4+vnni,x86-64-v2"]])
def test_the_most_demanding_comes_first(names):
    assert [each.name for each in resolve_variants(names)] == ["x86-64-v4+vnni", "x86-64-v3", "x86-64-v2"]


def test_one_is_as_good():
    assert [each.name for each in resolve_variants("cortex-a53")] == ["cortex-a53"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("x86-64-v3,aarch64", "aarch64.*different machines"),
        ("aarch64,armv7+neon", "different machines"),
        ("cortex-a53,cortex-a72", "cortex-a53 and cortex-a72 need the same"),
        ("x86-64-v3,x86-64-v3", "need the same"),
        ("x86-64-v3,", "target ''"),
        ("pdp11,x86-64-v3", "pdp11"),
        ([], "expected 1..32, got 0"),
    ],
)
def test_what_no_machine_could_choose_between_is_refused(names, message):
    with pytest.raises(UnsupportedError, match=message):
        resolve_variants(names)


@pytest.mark.parametrize(
    ("names", "common"),
    [
        ("x86-64-v4,x86-64-v3+avxvnni", "x86-64"),
        ("cortex-a76,aarch64+i8mm", "aarch64"),
        ("android-x86_64-v3,android-x86_64-v4", "android-x86_64"),
        ("android-cortex-a76,android-arm64", "android-arm64"),
        ("armv7+neon", "armv7+neon"),
    ],
)
def test_what_all_run_is_the_least_level_of_their_machine(names, common):
    assert common_ground(resolve_variants(names)) == resolve(common)
