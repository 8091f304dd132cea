"""The natural logarithm and its inverse by + - * / alone: the same bits on every device, which no libm promises."""

import math

_TERMS = 12  # of the series of the logarithm: the next one is under 2^-53 of the sum
_POWERS = 13  # of that of the exponential, likewise


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


def natural_exp(value: float) -> float:
    """e^value for a value within -700..700; the error grows to 1e-14 of it at 40.

    value = k log 2 + r with |r| <= log(2) / 2, and e^r = 1 + r (1 + r/2 (1 + r/3 (...))).
    """
    halvings = value * 1.4426950408889634
    exponent = int(halvings - 0.5 if halvings < 0.0 else halvings + 0.5)
    rest, total = value - exponent * 0.6931471805599453, 1.0
    for power in range(_POWERS, 0, -1):
        total = 1.0 + rest / power * total
    return math.ldexp(total, exponent)
