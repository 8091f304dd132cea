"""Which engines a step is compared with: names, what is missing, threads and instruction sets."""

import pytest

from edgedm.bench import peers
from edgedm.bench.peers import PEERS, environment, resolve_peers, unlimited
from edgedm.errors import ToolchainError, UnsupportedError
from edgedm.targets import resolve, x86

NAMES = {
    "onnxruntime_fp32",
    "onnxruntime_int8",
    "openvino_fp32",
    "openvino_int8",
    "torch_eager",
    "torch_compile",
    "ncnn_fp32",
    "tvm_default",
}


@pytest.fixture
def without(monkeypatch):
    """Make modules look as if they were not installed."""

    def hide(*hidden: str) -> None:
        monkeypatch.setattr(peers, "find_spec", lambda name: None if name in hidden else object())

    return hide


def test_the_engines_are_those_that_the_figures_promise():
    assert set(PEERS) == NAMES


def test_short_names_stand_for_float32(without):
    without()
    assert [peer.name for peer in resolve_peers(("onnxruntime", "torch"))[0]] == ["onnxruntime_fp32", "torch_eager"]


def test_none_is_no_engine():
    assert resolve_peers(("none",)) == ([], [])


def test_an_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(UnsupportedError, match=r"abacus.*onnxruntime_fp32.*tvm_default"):
        resolve_peers(("abacus", "onnxruntime"))


def test_a_missing_engine_that_was_asked_for_says_how_to_install_it(without):
    without("openvino")
    with pytest.raises(ToolchainError, match=r"openvino_int8 needs openvino: pip install 'edgedm\[peers\]'"):
        resolve_peers(("openvino_int8",))
    without("onnxruntime", "torch")
    with pytest.raises(ToolchainError, match=r"needs onnxruntime and torch: pip install 'edgedm\[compile,train\]'"):
        resolve_peers(("onnxruntime",))


def test_all_leaves_out_what_is_missing_and_says_so(without):
    without("ncnn", "pnnx")
    chosen, absent = resolve_peers(("all",))
    assert {peer.name for peer in chosen} == NAMES - {"ncnn_fp32"}
    [row] = absent
    assert row["engine"] == "ncnn_fp32"
    assert row["why"] == "ncnn and pnnx not installed"
    assert "pip install" in row["install"]


def test_all_together_with_a_name_insists_on_that_name(without):
    without("ncnn")
    with pytest.raises(ToolchainError, match="ncnn_fp32"):
        resolve_peers(("all", "ncnn_fp32"))


def test_threads_are_told_to_every_library(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    variables = environment("torch_eager", 2, resolve("host").name, sorted(x86.detect()))
    assert {variables[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")} == {"2"}


@pytest.mark.parametrize(
    ("target", "onednn", "aten"),
    [
        ("x86-64-v3", "AVX2", "avx2"),
        ("x86-64-v3+avxvnni", "AVX2_VNNI", "avx2"),
        ("x86-64-v4", "AVX512_CORE", "avx512"),
        ("x86-64-v4+vnni+vbmi", "AVX512_CORE_VNNI", "avx512"),
        ("x86-64", "SSE41", "default"),
    ],
)
def test_peers_are_limited_where_the_target_is_lesser_than_the_machine(monkeypatch, target, onednn, aten):
    everything = frozenset(x86.LEVELS["x86-64-v4"].features | set(x86.EXTRAS))
    monkeypatch.setattr(x86, "detect", lambda: everything)
    features = sorted(resolve(target).features)
    torch = environment("torch_eager", 1, target, features)
    assert (torch["ONEDNN_MAX_CPU_ISA"], torch["ATEN_CPU_CAPABILITY"]) == (onednn, aten)
    assert "ONEDNN_MAX_CPU_ISA" not in environment("onnxruntime_fp32", 1, target, features)
    assert "ONEDNN_MAX_CPU_ISA" not in environment("torch_eager", 1, target, sorted(everything))
    assert "onnxruntime_fp32" in unlimited(list(PEERS.values()), features)
    assert "torch_eager" not in unlimited(list(PEERS.values()), features)
    assert unlimited(list(PEERS.values()), sorted(everything)) == []
