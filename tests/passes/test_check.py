"""The check bites: each way to break a model is caught, and the pass that did it is named."""

import numpy as np
import onnx_ir as ir
import pytest
from pass_testing import graph, random_feeds, signs

from edgedm.errors import ParityError
from edgedm.passes.base import GraphPass
from edgedm.passes.check import Checker, same_bits
from edgedm.passes.fuse_binary_conv import FuseBinaryConv
from edgedm.passes.fuse_group_norm import FuseGroupNorm
from edgedm.passes.low_bit import index_of
from edgedm.passes.regions import Side

RNG = np.random.default_rng(8)


def layer():
    return graph(
        """g (float[1,70,6,6] x) => (float[1,6,6,6] y) {
            n = GroupNormalization<num_groups=5>(x, gamma, beta)
            s = Sigmoid(n)
            a = Mul(n, s)
            b = edgedm.Binarize(a, t)
            u = edgedm.UnpackBits<channels=70>(w)
            y = Conv<pads=[1,1,1,1]>(b, u)
        }""",
        gamma=RNG.standard_normal(70).astype(np.float32),
        beta=RNG.standard_normal(70).astype(np.float32),
        w=signs(RNG, 6, 3, 3, 70),
        t=RNG.standard_normal((1, 70, 1, 1)).astype(np.float32),
    )


def check(each, model):
    before = Side(model)
    checker = Checker([random_feeds(model, seed) for seed in range(2)])
    each(model)
    checker.check(each, before, model)
    return checker.verdicts[0]


class Spoil(FuseBinaryConv):
    """FuseBinaryConv, then `damage` to the one BinaryConv."""

    exact = True

    def __init__(self, damage):
        self.damage = damage

    def rewrite(self, model, editor):
        super().rewrite(model, editor)
        (conv,) = [node for node in model.graph if node.op_type == "BinaryConv"]
        self.damage(conv, editor)


def one_weight_bit(conv, editor):
    bits = conv.inputs[1].const_value.numpy().copy()
    bits[0, 1, 1, 0] ^= 4
    conv.replace_input_with(1, editor.constant(bits, "flipped"))


def padding_of_another_side(conv, editor):
    conv.attributes["pads"] = ir.AttrInt64s("pads", [0, 1, 2, 1])


def another_scale(conv, editor):
    multiplier = np.full(6, np.nextafter(np.float32(1), np.float32(2)), np.float32)
    conv.replace_input_with(index_of(conv, "multiplier"), editor.constant(multiplier, "scale"))


@pytest.mark.parametrize("damage", [one_weight_bit, padding_of_another_side, another_scale])
def test_a_damaged_exact_pass_is_named(damage):
    with pytest.raises(ParityError, match=r"^Spoil changed the model: output 'y': \d+ of 216 values differ"):
        check(Spoil(damage), layer())


def test_an_undamaged_exact_pass_is_bit_identical():
    verdict = check(FuseBinaryConv(), layer())
    assert (verdict.regions, verdict.identical) == (2, 2)


class SpoilNorm(FuseGroupNorm):
    """FuseGroupNorm with one wrong attribute or operand."""

    def __init__(self, **changes):
        self.changes = changes

    def rewrite(self, model, editor):
        super().rewrite(model, editor)
        (norm,) = [node for node in model.graph if node.op_type == "GroupNormSilu"]
        for name, value in self.changes.items():
            if name == "gamma":
                norm.replace_input_with(1, editor.constant(norm.inputs[1].const_value.numpy() * value, "gamma"))
            else:
                norm.attributes[name] = ir.convenience.convert_attribute(name, value)


@pytest.mark.parametrize("changes", [{"groups": 7}, {"epsilon": 1e-3}, {"gamma": np.float32(1.001)}])
def test_a_damaged_reassociating_pass_is_named_with_where_and_how_much(changes):
    said = r"SpoilNorm changed the model: 'a' \(.*\): changed by .* at \(0, .* expected -?\d.*, got -?\d.* explains"
    with pytest.raises(ParityError, match=said):
        check(SpoilNorm(**changes), layer())


def test_an_undamaged_reassociating_pass_stays_within_its_bound():
    verdict = check(FuseGroupNorm(), layer())
    assert 0 < verdict.use <= 1


class QuantizeHalfUp(GraphPass):
    """Replaces QuantizeCodes(x) by QuantizeCodes(x + tiny): ties then round up."""

    exact = False

    def rewrite(self, model, editor):
        (node,) = [each for each in model.graph if each.op_type == "QuantizeCodes"]
        x = node.inputs[0]
        shift = editor.constant(np.array(2.0**-10, np.float32), "shift")
        (moved,) = editor.add("Add", [x, shift], node, [("moved", ir.DataType.FLOAT, tuple(x.shape))])
        node.replace_input_with(0, moved)


def test_codes_that_rounding_does_not_explain_are_found():
    model = graph(
        "g (float[4,64] x) => (int8[4,64] y) { y = edgedm.QuantizeCodes(x, s) }", s=np.array(0.25, np.float32)
    )
    before = Side(model)
    ties = (np.arange(256, dtype=np.float32).reshape(4, 64) % 15 - 7.5) * np.float32(0.25)
    QuantizeHalfUp()(model)
    said = r"QuantizeHalfUp changed the model: 'y' \(QuantizeCodes m\.y\): \d+ of 256 codes"
    with pytest.raises(ParityError, match=said):
        Checker([{"x": ties}]).check(QuantizeHalfUp(), before, model)


class Shift(GraphPass):
    """Adds `by` to the input of the one node of this op."""

    exact = False

    def __init__(self, op_type, by):
        self.op_type, self.by = op_type, by

    def rewrite(self, model, editor):
        (node,) = [each for each in model.graph if each.op_type == self.op_type]
        x, shift = node.inputs[0], editor.constant(np.array(self.by, np.float32), "shift")
        (moved,) = editor.add("Add", [x, shift], node, [("moved", ir.DataType.FLOAT, tuple(x.shape))])
        node.replace_input_with(0, moved)


def shifted(op, by, x, **constants):
    """What the check says of one flipped decision; x [1, 8, 128]."""
    model = graph(f"g (float[1,8,128] x) => (uint8[{op[1]}] y) {{ y = edgedm.{op[0]} }}", **constants)
    before, each = Side(model), Shift(op[0].split("(")[0].split("<")[0], by)
    each(model)
    checker = Checker([{"x": x}])
    with pytest.raises(ParityError, match="Shift changed the model") as error:
        checker.check(each, before, model)
    return str(error.value)


def test_a_byte_is_one_decision_where_it_is_a_code_and_eight_where_it_is_packed_signs():
    x = RNG.uniform(0.1, 0.2, (1, 8, 128)).astype(np.float32)
    grid = {"one": np.ones(1, np.float32), "s": np.array(0.25, np.float32), "z": np.array(7, np.uint8)}
    assert "1024 of 1024 codes" in shifted(("QuantizeUniform(x, one, s, z)", "1,8,128"), 1.0, x, **grid)
    packed = shifted(("PackBits(x, t)", "1,8,16"), -1.0, x, t=np.zeros(128, np.float32))
    assert "1024 of 1024 codes" in packed


def test_same_bits_tells_signed_zeros_apart_and_takes_nan_as_itself():
    zero, nan = np.zeros(1, np.float32), np.full(1, np.nan, np.float32)
    assert not same_bits(zero, -zero)
    assert same_bits(nan, nan.copy())
    assert not same_bits(zero, zero.astype(np.float64))
