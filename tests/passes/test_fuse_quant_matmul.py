import ml_dtypes
import numpy as np
import pytest
from pass_testing import apply, graph
from uniform_graphs import STORED, limits, looked_up, lookup_constants, quantised, table

from edgedm.passes.fuse_quant_matmul import FuseQuantMatMul
from edgedm.passes.lookup_timestep_parameters import LookupTimestepParameters

RNG = np.random.default_rng(7)
HEADS = 3


def grid(name, bits, heads=HEADS):
    """Step and zero point constants of `name`, one a head, or one for all where heads is 0."""
    shape = (heads,) if heads else ()
    zeros = RNG.choice([0, 2**bits // 2, 2**bits - 1], shape)
    steps = RNG.uniform(0.05, 0.4, shape)
    return {f"{name}s": np.asarray(steps, np.float32), f"{name}z": np.asarray(zeros).astype(STORED[bits])}


def attention(left=4, right=4, heads=(HEADS, HEADS), transposed=True, **constants):
    """a [1,3,6,5] times b, quantised to `left` and `right` bits."""
    axes = [1 if count else None for count in heads]
    keys = "bt = Transpose<perm=[0,1,3,2]>(db) y = MatMul(da, bt)" if transposed else "y = MatMul(da, db)"
    shape = "1,3,7,5" if transposed else "1,3,5,7"
    text = f"""g (float[1,3,6,5] a, float[{shape}] b) => (float[1,3,6,7] y) {{
        {quantised("da", "a", "as", "az", left, axes[0])} {quantised("db", "b", "bs", "bz", right, axes[1])} {keys}
    }}"""
    given = {**grid("a", left, heads[0]), **grid("b", right, heads[1]), **limits(left, right), **constants}
    return graph(text, **given)


@pytest.mark.parametrize(("left", "right"), [(4, 4), (8, 4), (8, 8), (6, 2)])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("heads", [(HEADS, HEADS), (0, HEADS), (0, 0)])
def test_a_product_of_two_quantised_operands_becomes_one_op(left, right, transposed, heads):
    result = apply(FuseQuantMatMul(), attention(left, right, heads, transposed))
    assert sorted(result.ops) == ["QuantMatMul", "QuantizeHeads", "QuantizeHeads"]
    attributes = {name: each.value for name, each in result.one("QuantMatMul").attributes.items()}
    assert attributes == {"transposed": int(transposed), "bits": left, "other_bits": right}
    assert all(tuple(result.one("QuantMatMul").inputs[index].shape) == (HEADS,) for index in (1, 2, 4, 5))
    makers = [result.one("QuantMatMul").inputs[index].producer() for index in (0, 3)]
    assert [node.metadata_props["edgedm.module"] for node in makers] == ["m.da_q", "m.db_q"]  # the quantisers'
    result.assert_within_rounding()


@pytest.mark.parametrize("kind", [ml_dtypes.int4, np.int8], ids=["int4", "int8"])
@pytest.mark.parametrize("transposed", [True, False])
def test_signed_codes_become_unsigned_ones_with_another_zero_point(kind, transposed):
    zeros = {"az": np.array([-8, 0, 7]).astype(kind), "bz": np.zeros(HEADS, kind)}
    result = apply(FuseQuantMatMul(), attention(transposed=transposed, **zeros))
    assert sorted(result.ops) == ["QuantMatMul", "QuantizeHeads", "QuantizeHeads"]
    middle = 8 if kind is ml_dtypes.int4 else 128
    product = result.one("QuantMatMul")
    assert product.inputs[1].const_value.numpy().tolist() == [middle - 8, middle, middle + 7]
    assert product.inputs[4].const_value.numpy().tolist() == [middle] * HEADS
    result.assert_within_rounding()


@pytest.mark.parametrize("heads", [HEADS, 0])
def test_grids_looked_up_for_the_timestep_are_spread_over_the_heads(heads):
    axis = 1 if heads else None
    text = f"""g (float[1,3,6,5] a, float[1,3,5,7] b, int64[1] timestep) => (float[1,3,6,7] y) {{
        {looked_up("p", 8, heads)} {looked_up("q", 4, heads)}
        {quantised("da", "a", "p_step", "p_zero", 8, axis)} {quantised("db", "b", "q_step", "q_zero", 4, axis)}
        y = MatMul(da, db)
    }}"""
    tables = {"p_table": table(RNG, 8, heads), "q_table": table(RNG, 4, heads)}
    model = apply(LookupTimestepParameters(), graph(text, **tables, **lookup_constants(heads))).model
    result = apply(FuseQuantMatMul(), model)
    assert result.ops.count("Expand") == (0 if heads else 4) and result.ops.count("QuantizeHeads") == 2
    result.assert_within_rounding()


def test_an_operand_of_two_products_is_quantised_once():
    text = f"""g (float[1,3,6,5] a, float[1,3,5,7] b, float[1,3,5,2] c) => (float[1,3,6,7] y, float[1,3,6,2] z) {{
        {quantised("da", "a", "as", "az", 4, 1)} {quantised("db", "b", "bs", "bz", 4, 1)}
        {quantised("dc", "c", "bs", "bz", 4, 1)} y = MatMul(da, db) z = MatMul(da, dc)
    }}"""
    result = apply(FuseQuantMatMul(), graph(text, **grid("a", 4), **grid("b", 4)))
    assert result.ops.count("QuantizeHeads") == 3 and result.ops.count("QuantMatMul") == 2
    result.assert_within_rounding()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: attention(bs=np.array([0.1, -0.1, 0.1], np.float32)), "not positive"),
        (lambda: _signed_zero_at_run_time(), "signed"),
        (lambda: _along(3, 7), "axis 1"),
        (lambda: _batches(), r"expected two operands [1, heads, ...], got (2, 3, 6, 5)"),
    ],
    ids=["negative", "signed", "per column", "two images"],
)
def test_what_has_no_kernel_is_refused_with_its_reason(model, reason):
    result = apply(FuseQuantMatMul(), model())
    assert "MatMul" in result.ops
    assert reason in result.report.refusals[0].reason


def test_a_product_with_a_float_operand_is_left_alone():
    text = f"g (float[1,3,6,5] a, float[1,3,5,7] b) => (float[1,3,6,7] y) {{ {quantised('da', 'a', 'as', 'az', 4, 1)} "
    result = apply(FuseQuantMatMul(), graph(text + "y = MatMul(da, b) }", **grid("a", 4)))
    assert "MatMul" in result.ops and not result.report.refusals


def _along(axis, size):
    text = f"""g (float[1,3,6,5] a, float[1,3,5,7] b) => (float[1,3,6,7] y) {{
        {quantised("da", "a", "as", "az", 4, 1)} {quantised("db", "b", "bs", "bz", 4, axis)} y = MatMul(da, db)
    }}"""
    return graph(text, **grid("a", 4), **grid("b", 4, size))


def _signed_zero_at_run_time():
    text = f"""g (float[1,3,6,5] a, float[1,3,5,7] b, int8[3] bz) => (float[1,3,6,7] y) {{
        {quantised("da", "a", "as", "az", 4, 1)} {quantised("db", "b", "bs", "bz", 8, 1)} y = MatMul(da, db)
    }}"""
    return graph(text, **grid("a", 4), bs=grid("b", 8)["bs"])


def _batches():
    text = f"""g (float[2,3,6,5] a, float[2,3,5,7] b) => (float[2,3,6,7] y) {{
        {quantised("da", "a", "as", "az", 4, 1)} {quantised("db", "b", "bs", "bz", 4, 1)} y = MatMul(da, db)
    }}"""
    return graph(text, **grid("a", 4), **grid("b", 4))
