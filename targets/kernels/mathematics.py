"""Float functions that kernels need, in plain vector operations: no libm on any target.

e^-x is 2^n * p(f): n = round(-x / ln 2), f = -x - n ln 2, p of degree 5. Largest relative error: 3 units in the last
place where |x| <= 30, and 6 on [-88, 87] (tested). One power of two reaches from 0, above x = 87.68, to infinity, below
-88.37; float32 still has values a little beyond both, down to 1e-45 and up to 3.4e38, which 0 and infinity stand for.
"""

from collections.abc import Callable

from edgedm.targets.kernels.builder import Expr, const, fma, hold, reinterpret, splat, where

F32 = "float32"
_LOG2E = 1.44269504088896341
_LN2 = 0.69314718246459960938  # as a float32: 1.9e-9 too much, so an exact n ln 2 is within 2.5e-7
_LN2_HIGH = 0.693359375  # few bits, so that its product with n is exact in any case
_LN2_LOW = -2.12194440e-4
# e^f for |f| <= ln 2 / 2: the relative minimax polynomial whose last coefficient is 1, within 9.2e-8
_COEFFICIENTS = (8.2902728537e-3, 4.1898159900e-2, 1.6667638125e-1, 4.9999147839e-1, 9.9999970631e-1, 1.0)
_LOWEST, _HIGHEST = -89.0, 88.0  # 2^n of minus them is infinite or 0
_ROUND_MAGIC = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer (ties to even) in the low bits
_ROUND_MAGIC_BITS = 0x4B400000
_TINIEST, _LARGEST = 2.0**-149, (2.0 - 2.0**-23) * 2.0**127  # of float32
_USUAL, _SHIFT = 100, 60  # steps within 2^-100..2^100 stay as they are
_EXPONENT_BIAS, _MANTISSA_BITS = 127, 23


def inverse_exp(x: Expr, lanes: int, fused: bool, positive: bool = False) -> Expr:
    """e^-x for float32 lanes, NaN for NaN; `fused` is the target's, `positive` says that no x is below 0."""

    def number(value: float) -> Expr:
        return const(value, F32, lanes)

    # The comparisons keep a NaN: it fails both and stays.
    x = hold(x, lanes)
    if not positive:
        x = hold(where(x < number(_LOWEST), number(_LOWEST), x), lanes)
    x = hold(where(x > number(_HIGHEST), number(_HIGHEST), x), lanes)
    # -x = n ln 2 - f; n is taken from the sum as a float and as an exponent, without a conversion between the two
    shifted = hold(x * number(-_LOG2E) + number(_ROUND_MAGIC + _EXPONENT_BIAS), lanes)
    n = hold(shifted - number(_ROUND_MAGIC + _EXPONENT_BIAS), lanes)
    in_parts = (x + n * number(_LN2_HIGH)) + n * number(_LN2_LOW)
    f = hold(fma(n, number(_LN2), x, lanes) if fused else in_parts, lanes)
    p = number(-_COEFFICIENTS[0])
    for index, coefficient in enumerate(_COEFFICIENTS[1:]):  # of e^-f: every other coefficient changes its sign
        p = p * f + number(-coefficient if index % 2 else coefficient)
    exponent = reinterpret(shifted, _lanes("uint32", lanes)) << const(_MANTISSA_BITS, "uint32", lanes)
    return p * reinterpret(exponent, _lanes(F32, lanes))  # the other bits of the sum are shifted out


def silu(v: Expr, lanes: int, fused: bool) -> Expr:
    """v * sigmoid(v) = v / (1 + e^-v) for float32 lanes, one division.

    The 1 hides or halves the error of e^-v. SiLU is -0 below v = -88.4, where float32 still has values, from -3.6e-37
    up: SiLU(-88.5) is -3.2e-37. NaN gives NaN.
    """
    v = hold(v, lanes)
    return v / (const(1.0, F32, lanes) + inverse_exp(v, lanes, fused))


def nearest(x: Expr, lanes: int) -> Expr:
    """Nearest integer, ties to even, as int32 lanes, for |x| < 2^22; a NaN gives some integer.

    Read from the bits of a sum: no conversion that a NaN would make undefined, and nothing that TVM's simplifier,
    which takes (x + c) - c for x, could see through.
    """
    magic = const(_ROUND_MAGIC, F32, lanes)
    return reinterpret(x + magic, _lanes("int32", lanes)) - const(_ROUND_MAGIC_BITS, "int32", lanes)


def rounder(step: Expr, low: Expr, high: Expr, fused: bool) -> Callable[[Expr, int], Expr]:
    """Return what makes int32 lanes clip(round_half_even(x / step), low, high) of float32 lanes x, NaN to `low`.

    `step` and the bounds, which are whole, are float32 scalars; a step that is 0 or not finite gives a code of some
    kind. It clips before it rounds, which is the same and keeps the rounding in its range.
    """
    return _by_reciprocal(step, low, high) if fused else _by_division(step, low, high)


def _by_division(step: Expr, low: Expr, high: Expr) -> Callable[[Expr, int], Expr]:
    def whole(x: Expr, lanes: int) -> Expr:
        lowest, highest = splat(low, lanes), splat(high, lanes)
        q = hold(x / splat(step, lanes), lanes)
        q = hold(where(q > lowest, q, lowest), lanes)  # false for NaN; > and not >=: one instruction on x86
        q = hold(where(q < highest, q, highest), lanes)
        return nearest(q, lanes)

    return whole


def _by_reciprocal(step: Expr, low: Expr, high: Expr) -> Callable[[Expr, int], Expr]:
    """Divide by fused multiply-adds: five operations in the place of a division, which takes the time of 20 or so.

    q = x * (1 / s) is within 1.5 units of x / s, and fma(fma(-s, q, x), 1 / s, q) within one: Markstein's step (Muller
    et al., Handbook of Floating-Point Arithmetic, 2nd ed., section 4.7), unless something over- or underflows. So x is
    clipped where the code is, and tiny and huge steps are scaled, x with them. A second step would give the quotient
    rounded to nearest. Its nearest integer needs none: of all steps' 2^23 significands and every half up to 255.5 (a
    code less a zero point is smaller), no x within three floats of their product gets another one (tested), and any
    other x / s is two units at least from a half.
    """

    def number(value: float) -> Expr:
        return const(value, F32)

    size = hold(where(step < number(0.0), number(0.0) - step, step), 1)
    size = hold(where(size >= number(_TINIEST), size, number(_TINIEST)), 1)  # false for NaN
    size = hold(where(size <= number(_LARGEST), size, number(_LARGEST)), 1)
    small, large = size < number(2.0**-_USUAL), size > number(2.0**_USUAL)
    scale = hold(where(small, number(2.0**_SHIFT), where(large, number(2.0**-_SHIFT), number(1.0))), 1)
    signed = hold(where(step < number(0.0), number(0.0) - scale, scale), 1)
    divisor = hold(size * scale, 1)
    negative, reciprocal = hold(number(0.0) - divisor, 1), hold(number(1.0) / divisor, 1)
    first, last = hold(low * divisor, 1), hold(high * divisor, 1)

    def whole(x: Expr, lanes: int) -> Expr:
        x = hold(x * splat(signed, lanes), lanes)
        x = hold(where(x > splat(first, lanes), x, splat(first, lanes)), lanes)  # false for NaN
        x = hold(where(x < splat(last, lanes), x, splat(last, lanes)), lanes)
        s, r = splat(negative, lanes), splat(reciprocal, lanes)
        q = hold(x * r, lanes)
        return nearest(fma(fma(s, q, x, lanes), r, q, lanes), lanes)

    return whole


def _lanes(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
