"""What a judge lets pass and what it does not, on kernels that are numpy."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgedm.ops.packing import pack_rows
from edgedm.verify.graphs import Graph
from edgedm.verify.judge import judge, run_op

CHANNELS = 64


def graph(body: str, inputs: str, outputs: str, constants: dict[str, np.ndarray]) -> Graph:
    text = f'<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]> g ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, value in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return Graph(ir.serde.deserialize_model(proto))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def norm_pack(rng: np.random.Generator):
    """The graph of one GroupNormSiluPack, its input, and the outputs of ONNX Runtime."""
    constants = {name: rng.standard_normal(CHANNELS).astype(np.float32) for name in ("gamma", "beta", "t")}
    body = "y, bits, mean = edgedm.GroupNormSiluPack <groups=8, epsilon=0.00001> (x, gamma, beta, t)"
    whole = graph(body, "float[1,16,64] x", "float[1,16,64] y", constants)
    part = whole.part(["x"], ["y", "bits", "mean"])
    feeds = {"x": rng.standard_normal((1, 16, CHANNELS)).astype(np.float32)}
    return part, feeds, part.run(feeds), constants["t"]


def test_the_reference_itself_passes(rng) -> None:
    part, feeds, got, _ = norm_pack(rng)
    verdict = judge("GroupNormSiluPack", part, feeds, got)
    assert verdict.complaint is None
    assert 0 < verdict.use < 1 and verdict.operations > 16
    assert verdict.flips.codes == 16 * 64 and verdict.flips.total == 0


def test_a_float_beyond_rounding_is_named(rng) -> None:
    part, feeds, got, _ = norm_pack(rng)
    got["y"][0, 3, 5] += 0.01
    complaint = judge("GroupNormSiluPack", part, feeds, got).complaint
    assert complaint is not None and complaint.startswith("y: 1 of 1024 differ, first at [0, 3, 5]: expected")


def test_a_flipped_code_without_a_threshold_near_is_named(rng) -> None:
    part, feeds, got, t = norm_pack(rng)
    place = np.unravel_index(np.argmax(np.abs(got["y"] + t)), got["y"].shape)
    got["bits"][*place[:-1], place[-1] // 8] ^= np.uint8(1 << place[-1] % 8)
    verdict = judge("GroupNormSiluPack", part, feeds, got)
    assert verdict.flips.unexplained == 1
    assert verdict.complaint is not None and f"first at {[int(i) for i in place]}" in verdict.complaint


def test_a_code_within_rounding_must_still_follow_from_the_kernels_own_float(rng) -> None:
    part, feeds, got, _ = norm_pack(rng)
    (threshold,) = (item for item in part.model.graph.initializer if item.name == "t")
    threshold.CopyFrom(onnx.numpy_helper.from_array(-got["y"][0, 0], "t"))  # a pixel on the edge in every channel
    got["bits"][0, 0] = 0
    complaint = judge("GroupNormSiluPack", part, feeds, got).complaint
    assert complaint is not None and "decided on the kernel's own y" in complaint


def test_packed_bits_of_given_floats_are_equal_without_exception() -> None:
    t = np.linspace(-1, 1, CHANNELS).astype(np.float32)
    part = graph("b = edgedm.PackBits (x, t)", "float[2,64] x", "uint8[2,8] b", {"t": t}).part(["x"], ["b"])
    feeds = {"x": np.tile(-t, (2, 1))}
    right = part.run(feeds)
    assert np.all(right["b"] == 255)  # sign(0) is +1
    assert judge("PackBits", part, feeds, right).complaint is None
    wrong = {"b": pack_rows(feeds["x"] + t > 0)}
    complaint = judge("PackBits", part, feeds, wrong).complaint
    assert complaint is not None and "expected 1, got 0" in complaint


def test_half_up_is_not_half_even() -> None:
    step = np.array(0.25, np.float32)
    body = "q = edgedm.QuantizeCodes <low=-8, high=7> (x, s)"
    part = graph(body, "float[15] x", "int8[15] q", {"s": step}).part(["x"], ["q"])
    feeds = {"x": ((np.arange(-7, 8) + 0.5) * step).astype(np.float32)}
    assert judge("QuantizeCodes", part, feeds, part.run(feeds)).complaint is None
    half_up = np.clip(np.floor(feeds["x"] / step + np.float32(0.5)), -8, 7).astype(np.int8)
    assert judge("QuantizeCodes", part, feeds, {"q": half_up}).complaint is not None


def test_a_ceiling_catches_half_up_inside_a_fused_op(rng) -> None:
    step = np.array(64, np.float32)
    beta = (np.arange(CHANNELS) % 8 + np.float32(0.5)) * step
    constants = {"gamma": np.zeros(CHANNELS, np.float32), "beta": beta.astype(np.float32), "s": step}
    body = "q = edgedm.GroupNormSiluQuantize <groups=8, epsilon=0.00001, low=-8, high=7> (x, gamma, beta, s)"
    part = graph(body, "float[1,4,64] x", "int8[1,4,64] q", constants).part(["x"], ["q"])
    feeds = {"x": rng.standard_normal((1, 4, CHANNELS)).astype(np.float32)}
    half_even = run_op("QuantizeCodes", {"x": beta.astype(np.float32), "step": step}, {"low": -8, "high": 7}, 1)[0]
    ceiling = {"q": np.broadcast_to(half_even, (1, 4, CHANNELS))}
    half_up = np.broadcast_to(np.minimum(np.floor(beta / step + 0.5), 7).astype(np.int8), (1, 4, CHANNELS))
    assert judge("GroupNormSiluQuantize", part, feeds, {"q": ceiling["q"]}, ceiling).complaint is None
    assert judge("GroupNormSiluQuantize", part, feeds, {"q": half_up}).complaint is None  # a tie within rounding
    assert judge("GroupNormSiluQuantize", part, feeds, {"q": half_up}, ceiling).complaint is not None


def test_an_accumulator_off_by_one_is_named(rng) -> None:
    weight = pack_rows(rng.random((4, CHANNELS)) > 0.5)
    ones, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    constants = {"w": weight, "m": ones, "a": zero, "r": np.zeros((1, 1), np.float32), "g": np.ones(1, np.float32)}
    body = "y = edgedm.BinaryGemm <channels=64> (b, w, m, a, r, g)"
    part = graph(body, "uint8[3,8] b", "float[3,4] y", constants).part(["b"], ["y"])
    feeds = {"b": pack_rows(rng.random((3, CHANNELS)) > 0.5)}
    got = part.run(feeds)
    assert judge("BinaryGemm", part, feeds, got).complaint is None
    got["y"][2, 1] += 2
    complaint = judge("BinaryGemm", part, feeds, got).complaint
    assert complaint is not None and "first at [2, 1]" in complaint and "within 0" in complaint


def test_a_quantised_float_may_flip_only_within_rounding(rng) -> None:
    body = "e = Exp (x) q = QuantizeLinear (e, s, z) y = DequantizeLinear (q, s, z)"
    constants = {"s": np.array(0.5, np.float32), "z": np.array(0, np.int8)}
    part = graph(body, "float[4] x", "float[4] y", constants).part(["x"], ["y"])
    feeds = {"x": np.log(np.array([0.75, 1.0, 1.3, 3.25])).astype(np.float32)}
    got = part.run(feeds)
    flipped = {"y": got["y"] + np.array([0.5 if got["y"][0] < 0.75 else -0.5, 0, 0, 0], np.float32)}
    verdict = judge("", part, feeds, flipped)
    assert verdict.complaint is None and verdict.flips.total <= 1
    assert judge("", part, feeds, {"y": got["y"] + np.array([0, 0.5, 0, 0], np.float32)}).complaint is not None
