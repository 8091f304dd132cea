import ml_dtypes
import numpy as np
import pytest
from pass_testing import apply, graph
from uniform_graphs import quantised, weight

from edgedm.passes.fold_weight_dilation import FoldWeightDilation
from edgedm.passes.fuse_group_norm import FuseGroupNorm
from edgedm.passes.fuse_quant_conv import FuseQuantConv

RNG = np.random.default_rng(11)
DILATION = np.array([1, 2.5, 1, 0.6, 3, 1], np.float32)  # three channels of six
GRID = {"s": np.array(0.15, np.float32), "z": np.array(7, ml_dtypes.uint4), "z0": np.array(0, ml_dtypes.uint4)}
AFFINE = {"gamma": np.array([1, -2, 0.5, 0, 3, -0.1], np.float32), "beta": RNG.standard_normal(6).astype(np.float32)}
NORM = "h = GroupNormalization<num_groups=3>(x, gamma, beta)"
CONV = f"{quantised('q', 'v', 's', 'z', 4)} u = DequantizeLinear<axis=0>(w, ws, wz) y = Conv(q, u)"
LINEAR = "u = DequantizeLinear<axis=0>(w, ws, wz) ut = Transpose<perm=[1,0]>(u)"


def fused(body, result="1,8,3", shape="1,6,8", outputs="", inputs="", **constants):
    """A graph of x [1,6,8], or `shape`, with the norms and the products fused that stand before and after."""
    text = f"g (float[{shape}] x{inputs}) => (float[{result}] y{outputs}) {{ {body} }}"
    names = {**GRID, **weight(np.random.default_rng(1), 4, 3, 6), "d": DILATION, **constants}
    used = {name: array for name, array in names.items() if any(f"{c}{name}{e}" in text for c in "( " for e in "),")}
    return apply(FuseGroupNorm(), apply(FuseQuantConv(), graph(text, **used)).model).model


def tokens(divisors=("d",), tail="", **constants):
    """A norm over tokens and products behind it, each behind its own division."""
    branches = " ".join(
        f"v{i} = Div(t, {divisor}) {quantised(f'q{i}', f'v{i}', 's', 'z' if i else 'z0', 4)} m{i} = MatMul(q{i}, ut)"
        for i, divisor in enumerate(divisors)
    )
    total = "y = Identity(m0)" if len(divisors) == 1 else "y = Add(m0, m1)"
    body = f"{NORM} t = Transpose<perm=[0,2,1]>(h) {LINEAR} {branches} {total} {tail}"
    return fused(body, **{**AFFINE, **constants})


def affine_of(result):
    return [result.one("GroupNorm").inputs[index].const_value.numpy() for index in (1, 2)]


def test_a_division_behind_a_norm_goes_into_its_gamma_and_beta():
    result = apply(FoldWeightDilation(), tokens())
    assert "Div" not in result.ops
    gamma, beta = affine_of(result)
    assert np.array_equal(gamma, AFFINE["gamma"] / DILATION) and np.array_equal(beta, AFFINE["beta"] / DILATION)
    assert result.report.notes == {"channels.norm": 3, "channels.quantiser": 0}
    (found,) = result.report.details["channels.norm"].items()
    assert "GroupNorm" in found[0] and found[1] == [1, 3, 4] and set(result.report.details) == {"channels.norm"}
    result.assert_within_rounding()


def test_several_readers_that_divide_by_the_same_share_the_folded_norm():
    result = apply(FoldWeightDilation(), tokens(("d", "e"), e=DILATION))
    assert "Div" not in result.ops and result.ops.count("GroupNorm") == 1
    assert result.report.notes["channels.quantiser"] == 0
    result.assert_within_rounding()


def test_readers_that_divide_by_others_keep_their_own_divisors_exactly():
    result = apply(FoldWeightDilation(), tokens(("d", "e"), e=DILATION[::-1].copy()))
    assert "Div" not in result.ops and affine_of(result)[0].tolist() == AFFINE["gamma"].tolist()
    assert result.report.notes == {"channels.norm": 0, "channels.quantiser": 6}
    result.assert_same_bits()


@pytest.mark.parametrize("tail", ["k = Neg(t)", "k = Neg(v0)"])
def test_a_norm_or_quotient_that_is_read_elsewhere_is_not_changed(tail):
    body = f"{NORM} t = Transpose<perm=[0,2,1]>(h) {LINEAR} v0 = Div(t, d) {quantised('q', 'v0', 's', 'z', 4)}"
    text = f"{body} y = MatMul(q, ut) o = {tail.split('= ')[1]}"
    result = apply(FoldWeightDilation(), fused(text, outputs=", float[1,8,6] o", **AFFINE))
    assert result.report.notes == {"channels.norm": 0, "channels.quantiser": 3}
    assert ("Div" in result.ops) == ("v0" in tail)
    result.assert_same_bits()


def test_a_norm_of_an_image_is_folded_through_its_transposes():
    body = f"{NORM} v = Div(h, dc) {CONV}"
    constants = {**AFFINE, "dc": DILATION.reshape(6, 1, 1), **weight(RNG, 4, 3, 6, 2, 2)}
    result = apply(FoldWeightDilation(), fused(body, "1,3,3,4", "1,6,4,5", **constants))
    assert sorted(result.ops) == ["GroupNorm", "QuantConv", "QuantizeUniform", "Transpose", "Transpose"]
    assert result.report.notes == {"channels.norm": 3, "channels.quantiser": 0}
    result.assert_within_rounding()


@pytest.mark.parametrize("before", [f"{NORM} g = Sigmoid(h) a = Mul(h, g)", "a = Relu(x)"])
def test_behind_anything_else_the_division_becomes_the_quantisers_and_changes_no_bit(before):
    body = f"{before} v = Div(a, dc) {CONV}"
    constants = {"dc": DILATION.reshape(6, 1, 1), **weight(RNG, 4, 3, 6, 2, 2), **AFFINE}
    result = apply(FoldWeightDilation(), fused(body, "1,3,3,4", "1,6,4,5", **constants))
    assert "Div" not in result.ops and result.report.notes == {"channels.norm": 0, "channels.quantiser": 3}
    assert result.one("QuantizeUniform").inputs[1].const_value.numpy().tolist() == DILATION.tolist()
    result.assert_same_bits()


def test_an_affine_that_would_leave_float32s_range_stays_and_the_quantiser_divides():
    result = apply(FoldWeightDilation(), tokens(d=np.full(6, 1e-30, np.float32), gamma=np.full(6, 1e20, np.float32)))
    assert result.report.notes == {"channels.norm": 0, "channels.quantiser": 6}
    result.assert_same_bits()


@pytest.mark.parametrize("division", ["v = Div(x, p)", "v = Div(dm, x)"])
def test_a_division_that_is_no_dilation_stays(division):
    body = f"{division} {quantised('q', 'v', 's', 'z', 4)} {LINEAR} y = MatMul(q, ut)"
    constants = {"p": np.full((8, 6), 2, np.float32), "dm": np.ones((1, 8, 6), np.float32)}
    result = apply(FoldWeightDilation(), fused(body, shape="1,8,6", **constants))
    assert "Div" in result.ops
    result.assert_same_bits()


def test_a_second_division_is_refused():
    body = f"v1 = Div(x, e) v = Div(v1, d) {quantised('q', 'v', 's', 'z', 4)} {LINEAR} y = MatMul(q, ut)"
    model = fused(body, shape="1,8,6", e=DILATION + 1)
    FoldWeightDilation()(model)
    result = apply(FoldWeightDilation(), model)
    assert "divisor already" in result.report.refusals[0].reason
    assert result.ops.count("Div") == 1
