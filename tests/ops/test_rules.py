"""The rules refuse operands that don't fit, so that no kernel ever sees them."""

import pytest

from edgedm.ops import FUNCTIONS
from edgedm.ops.rules import _RULES, output_types

GEMM = [(2, 16), (6, 16), (6,), (6,), (1,), (1,)]
CONV = [(1, 9, 9, 16), (4, 3, 3, 16), (4,), (1, 1, 1, 1), (4,), (1, 1, 1, 1), (1,)]
CONV_ATTRIBUTES = {"channels": 65, "strides": [1, 1], "pads": [1, 1, 1, 1]}
HEADS = [(1, 2, 9, 5), (2,), (2,), (1, 2, 7, 5), (2,), (2,)]
QUANT_GEMM = [(2, 5), (), (6, 5), (6,), (6,), (), (6,), (1,), (1,)]
QUANT_CONV = [(1, 9, 9, 5), (), (4, 3, 3, 5), (4,), (4,), (), (4,), (1, 1, 1, 1), (1,)]
NORM = {"groups": 5, "epsilon": 1e-5}


def test_every_function_has_its_rule() -> None:
    assert set(_RULES) == set(FUNCTIONS)


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "message"),
    [
        ("Binarize", [(1, 5), (2, 5)], {}, "threshold"),
        ("UnpackBits", [(4, 3, 3, 8)], {"channels": 65}, "bytes in a row: expected 16, got 8"),
        ("UnpackBitsLinear", [(4, 16)], {"channels": 64}, "bytes in a row: expected 8, got 16"),
        ("TimestepLookup", [(3, 7), (4,), (1,)], {}, "edges"),
        ("PackBits", [(1, 5), (4,)], {}, "threshold"),
        ("QuantizeCodes", [(1, 5), (1,)], {}, "step"),
        ("QuantizeCodes", [(1, 5), ()], {"low": 8, "high": 7}, "low"),
        ("BinaryGemm", GEMM, {"channels": 64}, "bits"),
        ("BinaryGemm", [*GEMM[:2], (5,), *GEMM[3:]], {"channels": 65}, "multiplier"),
        ("BinaryGemm", [*GEMM[:4], (3, 6), (1,)], {"channels": 65}, "residual"),
        ("BinaryGemm", GEMM[:5], {"channels": 65}, "argument"),
        ("BinaryConv", CONV, {**CONV_ATTRIBUTES, "strides": [0, 1]}, "strides"),
        ("BinaryConv", CONV, {**CONV_ATTRIBUTES, "pads": [0, 0, -1, 0]}, "pads"),
        ("BinaryConv", [(2, 9, 9, 16), *CONV[1:]], CONV_ATTRIBUTES, "batch 2"),
        ("BinaryConv", [(1, 1, 0, 16), *CONV[1:]], {**CONV_ATTRIBUTES, "pads": [0] * 4}, "larger"),
        ("BinaryConv", [*CONV[:3], (1, 9, 8, 1), *CONV[4:]], CONV_ATTRIBUTES, "pixel_scale"),
        ("GroupNorm", [(1, 4, 64), (64,), (64,)], NORM, "groups"),
        ("GroupNorm", [(1, 4, 65), (65,), (64,)], NORM, "beta"),
        ("GroupNormSiluPack", [(1, 4, 65), (65,), (65,), (64,)], NORM, "threshold"),
        ("GroupNormSiluQuantize", [(1, 4, 65), (65,), (65,), (65,)], NORM, "step"),
        ("QuantizeUniform", [(2, 5), (4,), (), ()], {}, "divisor"),
        ("QuantizeUniform", [(2, 5), (5,), (5,), ()], {}, "step"),
        ("QuantizeUniform", [(2, 5), (5,), (), (1,)], {}, "zero"),
        ("QuantizeUniform", [(2, 5), (5,), (), ()], {"bits": 9}, "bits: expected 2..8, got 9"),
        ("QuantizeHeads", [(1, 2, 9, 5), (), (2,)], {}, "step"),
        ("QuantizeHeads", [(2, 9, 5), (2,), (2,)], {}, "heads"),
        ("QuantGemm", [QUANT_GEMM[0], (1,), *QUANT_GEMM[2:]], {}, "zero"),
        ("QuantGemm", [(2, 4), *QUANT_GEMM[1:]], {}, "weight"),
        ("QuantGemm", [*QUANT_GEMM[:3], (), *QUANT_GEMM[4:]], {}, "weight_zero"),
        ("QuantGemm", [*QUANT_GEMM[:5], (6,), *QUANT_GEMM[6:]], {}, "step"),
        ("QuantGemm", QUANT_GEMM, {"weight_bits": 1}, "weight_bits"),
        ("QuantConv", [(1, 9, 9, 4), *QUANT_CONV[1:]], CONV_ATTRIBUTES, "input channels"),
        ("QuantConv", [*QUANT_CONV[:7], (1, 2, 1, 1), (1,)], CONV_ATTRIBUTES, "residual"),
        ("QuantMatMul", [(1, 2, 9, 4), *HEADS[1:]], {}, "depth"),
        ("QuantMatMul", HEADS, {"transposed": 0}, "depth"),
        ("QuantMatMul", HEADS, {"transposed": 2}, "transposed"),
        ("QuantMatMul", [*HEADS[:3], (1, 3, 7, 5), (3,), (3,)], {}, "heads of b"),
        ("QuantMatMul", [*HEADS[:4], (), (2,)], {}, "b_zero"),
        ("GroupNormSiluQuantizeUniform", [(1, 4, 65), (65,), (65,), (4,), (), ()], NORM, "divisor"),
        ("FloatConv", [(1, 9, 9, 3), (4, 2, 3, 3), (4,)], CONV_ATTRIBUTES, "weight"),
        ("UpsampleNearest", [(1, 9, 9, 3)], {"factor": 0}, "factor"),
        ("AveragePool2d", [(1, 1, 9, 3)], {"kernel": [2, 2]}, "kernel"),
    ],
)
def test_operands_that_do_not_fit_are_named(op, shapes, attributes, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        output_types(op, shapes, attributes)
