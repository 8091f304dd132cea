"""Float functions that kernels need, in plain vector operations: no libm on any target.

e^-x is 2^n * p(f): n = round(-x / ln 2), f = -x - n ln 2 in two parts, p of degree 6. Largest relative error on
[-88, 87]: 2 units in the last place (tested). One power of two reaches from 0, above x = 88, to infinity, below -88.4;
float32 still has values beyond, down to 1e-45, and 0 stands for those.
"""

from edgedm.targets.kernels.builder import Expr, cast, const, hold, reinterpret, where

_LOG2E = 1.44269504088896341
_LN2_HIGH = 0.693359375  # few bits, so that its product with n is exact
_LN2_LOW = -2.12194440e-4
# e^f for |f| <= ln 2 / 2: the relative minimax polynomial whose last two coefficients are 1, within 3.1e-9
_COEFFICIENTS = (1.3814540074e-3, 8.3687451079e-3, 4.1668390786e-2, 1.6666520399e-1, 4.9999993432e-1, 1.0, 1.0)
_LOWEST, _HIGHEST = -89.0, 88.0  # 2^n of minus them is infinite or 0
_ROUND_MAGIC = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer (ties to even) in the low bits
_ROUND_MAGIC_BITS = 0x4B400000
_EXPONENT_BIAS, _MANTISSA_BITS = 127, 23


def inverse_exp(x: Expr, lanes: int) -> Expr:
    """e^-x for float32 lanes, NaN for NaN."""

    def number(value: float) -> Expr:
        return const(value, "float32", lanes)

    # The comparisons keep a NaN: it fails both and stays.
    x = hold(x, lanes)
    x = hold(where(x < number(_LOWEST), number(_LOWEST), x), lanes)
    x = hold(where(x > number(_HIGHEST), number(_HIGHEST), x), lanes)
    # -x = n ln 2 - f; n is taken from the sum as a float and as an exponent, without a conversion between the two
    shifted = hold(x * number(-_LOG2E) + number(_ROUND_MAGIC), lanes)
    n = hold(shifted - number(_ROUND_MAGIC), lanes)
    f = hold((x + n * number(_LN2_HIGH)) + n * number(_LN2_LOW), lanes)
    p = number(_COEFFICIENTS[0])
    for index, coefficient in enumerate(_COEFFICIENTS[1:]):  # of e^-f: every other coefficient changes its sign
        p = p * f + number(coefficient if index % 2 else -coefficient)
    whole = hold(reinterpret(shifted, _lanes("int32", lanes)) - const(_ROUND_MAGIC_BITS, "int32", lanes), lanes)
    return p * _power_of_two(whole, lanes)


def silu(v: Expr, lanes: int) -> Expr:
    """v * sigmoid(v) = v / (1 + e^-v) for float32 lanes, one division.

    The 1 hides or halves the error of e^-v. SiLU is -0 below v = -88.4, where float32 still has values, from -3.6e-37
    up: SiLU(-88.5) is -3.2e-37. NaN gives NaN.
    """
    v = hold(v, lanes)
    return v / (const(1.0, "float32", lanes) + inverse_exp(v, lanes))


def nearest(x: Expr, lanes: int) -> Expr:
    """Nearest integer, ties to even, as int32 lanes, for |x| < 2^22; a NaN gives some integer.

    Read from the bits of a sum: no conversion that a NaN would make undefined, and nothing that TVM's simplifier,
    which takes (x + c) - c for x, could see through.
    """
    magic = const(_ROUND_MAGIC, "float32", lanes)
    return reinterpret(x + magic, _lanes("int32", lanes)) - const(_ROUND_MAGIC_BITS, "int32", lanes)


def codes(x: Expr, step: Expr, low: int, high: int, lanes: int) -> Expr:
    """int8 lanes clip(round_half_even(x / step), low, high), NaN to `low`; `step` is a float32 of `lanes`.

    It clips before it rounds, which is the same for whole bounds and keeps the rounding in its range.
    """
    lowest, highest = const(low, "float32", lanes), const(high, "float32", lanes)
    q = hold(x / step, lanes)
    q = hold(where(q > lowest, q, lowest), lanes)  # false for NaN; > and not >=: one instruction on x86
    q = where(q < highest, q, highest)
    return cast(nearest(q, lanes), "int8", lanes)


def uniform_codes(x: Expr, step: Expr, zero: Expr, top: int, lanes: int) -> Expr:
    """uint8 lanes clamp(round_half_even(x / step) + zero, 0, top), NaN to 0; `step`, `zero` are float32 of `lanes`.

    It clips to -zero..top - zero before it rounds, which is the same for a whole zero point.
    """
    lowest = hold(const(0.0, "float32", lanes) - zero, lanes)
    highest = const(top, "float32", lanes) - zero
    q = hold(x / step, lanes)
    q = hold(where(q > lowest, q, lowest), lanes)  # false for NaN
    q = hold(where(q < highest, q, highest), lanes)
    return cast(nearest(q, lanes) + cast(zero, "int32", lanes), "uint8", lanes)


def _power_of_two(n: Expr, lanes: int) -> Expr:
    bits = (n + const(_EXPONENT_BIAS, "int32", lanes)) * const(1 << _MANTISSA_BITS, "int32", lanes)
    return reinterpret(bits, _lanes("float32", lanes))


def _lanes(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
