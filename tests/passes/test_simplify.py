import numpy as np
import pytest
from pass_testing import apply, graph, signs

from edgedm.passes.simplify import Simplify

RNG = np.random.default_rng(7)


def test_packed_weights_stay_packed():
    model = graph(
        """g (float[1,5,6,6] x) => (float[1,3,6,6] y) {
            b = edgedm.Binarize(x, t)
            u = edgedm.UnpackBits<channels=5>(w)
            y = Conv<pads=[1,1,1,1]>(b, u)
        }""",
        w=signs(RNG, 3, 3, 3, 5),
        t=np.zeros((1, 5, 1, 1), np.float32),
    )
    result = apply(Simplify(), model)
    assert sorted(result.ops) == ["Binarize", "Conv", "UnpackBits"]
    assert set(result.model.graph.initializers) == {"w", "t"}
    result.assert_same_bits()


def test_constants_are_folded_and_no_ops_dropped():
    model = graph(
        """g (float[1,5,6,6] x) => (float[1,5,6,6] y) {
            one = Constant<value_floats=[1.0]>()
            two = Add(one, one)
            a = Mul(x, one)
            t = Transpose<perm=[0,2,3,1]>(a)
            f = Transpose<perm=[0,3,1,2]>(t)
            y = Mul(f, two)
        }"""
    )
    result = apply(Simplify(), model)
    assert result.ops == ["Mul"]
    result.assert_same_bits()


def test_equal_subexpressions_are_computed_once():
    model = graph("g (float[4] x) => (float[4] y) { a = Sin(x) b = Sin(x) y = Add(a, b) }")
    result = apply(Simplify(), model)
    assert sorted(result.ops) == ["Add", "Sin"]
    result.assert_same_bits()


def test_float_arithmetic_is_never_regrouped():
    model = graph(
        """g (float[1,5,6,6] x) => (float[1,3,6,6] y, float[1,3] z) {
            c = Conv<pads=[1,1,1,1]>(x, w)
            d = Mul(c, g)
            e = Add(d, o)
            y = Mul(e, g)
            p = GlobalAveragePool(x)
            f = Flatten(p)
            m = MatMul(f, k)
            n = Add(m, b)
            z = Mul(n, g)
        }""",
        w=RNG.standard_normal((3, 5, 3, 3)).astype(np.float32),
        g=np.array([0.3], np.float32),
        o=RNG.standard_normal((1, 3, 1, 1)).astype(np.float32),
        k=RNG.standard_normal((5, 3)).astype(np.float32),
        b=RNG.standard_normal(3).astype(np.float32),
    )
    result = apply(Simplify(), model)
    assert [op for op in result.ops if op in ("Mul", "Add")] == ["Mul", "Add", "Mul", "Add", "Mul"]
    result.assert_same_bits()


def test_every_node_keeps_the_module_that_it_comes_from():
    model = graph("g (float[2,3] x) => (float[3,2] y) { a = Neg(x) b = Transpose<perm=[1,0]>(a) y = Sin(b) }")
    result = apply(Simplify(), model)
    assert [node.metadata_props["edgedm.module"] for node in result.model.graph] == ["m.a", "m.b", "m.y"]


def test_foreign_metadata_is_dropped():
    model = graph("g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }")
    next(iter(model.graph)).metadata_props["stack_trace"] = "/somewhere/private.py"
    result = apply(Simplify(), model)
    assert list(next(iter(result.model.graph)).metadata_props) == ["edgedm.module"]
    assert not result.model.metadata_props


@pytest.mark.parametrize(
    "body",
    [
        "y = Neg(x) z = Neg(x)",
        "y = Neg(x) z = Identity(y)",
        "c = Neg(x) y = Identity(c) z = Neg(x)",
        "z = Neg(x) y = Identity(z)",
    ],
)
def test_equal_outputs_keep_their_names(body):
    result = apply(Simplify(), graph(f"g (float[4] x) => (float[4] y, float[4] z) {{ {body} }}"))
    assert sorted(result.ops) == ["Identity", "Neg"]
    result.assert_same_bits()


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("y = Relu(x) z = Relu(x) k = Neg(y)", ["Relu", "Neg", "Identity"]),
        ("z = Relu(x) y = Relu(x) k = Neg(z)", ["Relu", "Neg", "Identity"]),
        ("z = Relu(x) k = Neg(z) y = Identity(z)", ["Relu", "Neg", "Identity"]),
        ("z = Relu(x) y = Relu(x) k = Relu(x)", ["Relu", "Identity", "Identity"]),
        ("y = Identity(x) z = Identity(x) k = Neg(z)", ["Neg", "Identity", "Identity"]),
    ],
)
def test_copies_of_equal_outputs_stand_last_and_nothing_reads_them(body, ops):
    result = apply(Simplify(), graph(f"g (float[4] x) => (float[4] y, float[4] z, float[4] k) {{ {body} }}"))
    assert result.ops == ops
    result.assert_same_bits()
