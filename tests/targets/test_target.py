"""Names of targets, detection and what the list says."""

import pytest

from edgedm.errors import ToolchainError, UnsupportedError
from edgedm.targets import available, resolve, targets, x86

FLAGS_V3 = "fpu sse2 ssse3 sse4_1 sse4_2 popcnt avx avx2 fma bmi1 bmi2 f16c"
FLAGS_V4 = f"{FLAGS_V3} avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni avx512_vpopcntdq avx512vbmi"


detect = x86.detect


def machine(monkeypatch, flags):
    here = detect(f"flags : {flags}\n")
    monkeypatch.setattr(x86, "detect", lambda: here)


def test_host_is_the_best_level_with_its_features(monkeypatch):
    monkeypatch.delenv("EDGEDM_FEATURES", raising=False)
    machine(monkeypatch, FLAGS_V4)
    assert resolve("host").name == "x86-64-v4+vnni+vbmi+vpopcntdq"
    machine(monkeypatch, FLAGS_V3)
    assert resolve("host").name == "x86-64-v3"
    machine(monkeypatch, FLAGS_V3 + " avx_vnni")
    assert resolve("host").name == "x86-64-v3+avxvnni"


def test_the_environment_makes_host_mean_less(monkeypatch):
    machine(monkeypatch, FLAGS_V4)
    monkeypatch.setenv("EDGEDM_FEATURES", "x86-64-v3")
    assert resolve("host") == resolve("x86-64-v3")


def test_the_environment_cannot_make_host_mean_more(monkeypatch):
    machine(monkeypatch, FLAGS_V3)
    monkeypatch.setenv("EDGEDM_FEATURES", "x86-64-v4+vnni")
    with pytest.raises(ToolchainError, match="lacks avx512bw"):
        resolve("host")


def test_a_machine_has_only_what_all_its_processors_have():
    assert "avx2" not in x86.detect("flags : sse2 avx2\nflags : sse2\n")


def test_a_machine_that_is_no_x86_has_no_host(monkeypatch):
    monkeypatch.setattr(x86, "detect", frozenset)
    with pytest.raises(UnsupportedError, match="not yet built"):
        resolve("host")


@pytest.mark.parametrize("name", ["z80", "x86-64-v3+sse9", "x86-64-v9", ""])
def test_an_unknown_name_says_what_is_known(name):
    with pytest.raises(UnsupportedError, match=r"x86-64-v3|avxvnni"):
        resolve(name)


def test_a_planned_target_says_that_it_is_not_built_yet():
    with pytest.raises(UnsupportedError, match="not yet built"):
        resolve("aarch64+dotprod")


def test_the_features_of_a_name_come_in_one_order():
    assert resolve("x86-64-v4+vpopcntdq+vnni").name == "x86-64-v4+vnni+vpopcntdq"


def test_the_list_names_every_target_and_what_it_needs():
    rows = {row["name"]: row for row in available()}
    assert rows["x86-64"]["available"] == bool(x86.detect())
    assert not rows["aarch64-android"]["available"]
    assert "not yet built" in rows["wasm32+simd128"]["needs"]
    assert targets().ok
