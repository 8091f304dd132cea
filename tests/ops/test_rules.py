"""The rules refuse operands that don't fit, so that no kernel ever sees them."""

import pytest

from edgedm.ops import FUNCTIONS
from edgedm.ops.rules import _RULES, output_types

GEMM = [(2, 16), (6, 16), (6,), (6,), (1,), (1,)]
CONV = [(1, 9, 9, 16), (4, 3, 3, 16), (4,), (1, 1, 1, 1), (4,), (1, 1, 1, 1), (1,)]
CONV_ATTRIBUTES = {"channels": 65, "strides": [1, 1], "pads": [1, 1, 1, 1]}
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
        ("FloatConv", [(1, 9, 9, 3), (4, 2, 3, 3), (4,)], CONV_ATTRIBUTES, "weight"),
        ("UpsampleNearest", [(1, 9, 9, 3)], {"factor": 0}, "factor"),
        ("AveragePool2d", [(1, 1, 9, 3)], {"kernel": [2, 2]}, "kernel"),
    ],
)
def test_operands_that_do_not_fit_are_named(op, shapes, attributes, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        output_types(op, shapes, attributes)
