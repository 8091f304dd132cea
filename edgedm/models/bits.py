"""How many bits a layer's weights and activations take, as text: "float", "W4A4", or "A4" for a product's operands."""

import re
from typing import Annotated

from pydantic import AfterValidator

WIDTHS = (1, 2, 4, 6, 8, 32)  # 32: that side stays float32

_PATTERN = re.compile(r"(?:W([0-9]{1,2}))?A([0-9]{1,2})")


def parse_bits(text: str) -> tuple[int, int]:
    """Return (weight bits, activation bits) of "W4A4"; "A4" has no weight, 32; "float" is (32, 32).

    Raises `ValueError` for anything else, widths other than `WIDTHS` included.
    """
    if text == "float":
        return 32, 32
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"bits: expected 'float', 'W4A4' or 'A4', got {text!r}")
    weight, activation = int(match[1] or 32), int(match[2])
    if weight not in WIDTHS or activation not in WIDTHS:
        raise ValueError(f"bits: expected widths of {', '.join(map(str, WIDTHS))}, got {text!r}")
    return weight, activation


def _checked(text: str) -> str:
    parse_bits(text)
    return text


Bits = Annotated[str, AfterValidator(_checked)]
