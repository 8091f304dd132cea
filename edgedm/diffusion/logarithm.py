"""The natural logarithm by + - * / alone: the same bits on every device, which no libm promises."""

import math

_TERMS = 12  # of the series below: the next one is under 2^-53 of the sum


def natural_log(value: float) -> float:
    """log(value) of a normal positive double, to about one unit in the last place.

    value = 2^e * m with m in 1/sqrt(2)..sqrt(2), and log m = 2 atanh(r) = 2 (r + r^3 / 3 + r^5 / 5 + ...) for
    r = (m - 1) / (m + 1), which is below 0.172.
    """
    mantissa, exponent = math.frexp(value)
    mantissa, exponent = mantissa * 2.0, exponent - 1  # in 1..2
    if mantissa > 1.4142135623730951:
        mantissa, exponent = mantissa / 2.0, exponent + 1
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square, total = ratio * ratio, 0.0
    for term in range(_TERMS - 1, -1, -1):
        total = total * square + 1.0 / (2 * term + 1)
    return exponent * 0.6931471805599453 + 2.0 * ratio * total
