"""Make a network of diffusers from a config, which is text that may say anything; diffusers checks little of it.

What no constructor minds comes to light where the network runs: an infinite epsilon, padding of a thousand million
pixels, text for a number. So arguments are held against the constructor's own defaults and a few bounds before it is
called.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from edgedm.errors import InvalidModelError, short

REFUSALS = (  # what diffusers raises for arguments that make no sense
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AttributeError,
    AssertionError,
)
_LARGEST = 2**31 - 1  # of any number
_BOUNDS: dict[str, tuple[float, float]] = {  # least and most
    "norm_eps": (0.0, 1.0),
    "norm_num_groups": (1, 1 << 16),
    "attention_head_dim": (1, 1 << 16),
    "num_attention_heads": (1, 1 << 16),
    "mid_block_scale_factor": (1e-3, 1e3),
    "resnet_out_scale_factor": (1e-3, 1e3),
    "dropout": (0.0, 1.0),
    "freq_shift": (0, 1),
    "downsample_padding": (0, 1),
    "conv_in_kernel": (1, 31),
    "conv_out_kernel": (1, 31),
}


def construct(class_name: str, arguments: Mapping[str, Any], key: str) -> nn.Module:
    """Return the network `class_name` of diffusers with these arguments, freshly initialised.

    Raises `InvalidModelError` that begins with `key` and names the argument, where edgedm or diffusers refuses one.
    """
    import diffusers

    kind = getattr(diffusers, class_name)
    defaults = inspect.signature(kind.__init__).parameters
    for name, value in arguments.items():
        if name in defaults:
            reason = _strangeness(value, defaults[name], _BOUNDS.get(name, (-_LARGEST, _LARGEST)))
            if reason:
                raise InvalidModelError(f"{key}.{name}: {reason}")
    try:
        network: nn.Module = kind(**arguments)
    except REFUSALS as error:
        raise InvalidModelError(f"{key}: {class_name} refuses it: {error}") from error
    return network


def given_or_default(class_name: str, arguments: Mapping[str, Any], name: str) -> Any:
    """The argument `name` of the network `class_name` of diffusers: as given, or what the constructor takes for it."""
    import diffusers

    return arguments.get(name, inspect.signature(getattr(diffusers, class_name).__init__).parameters[name].default)


def _strangeness(value: Any, parameter: inspect.Parameter, bounds: tuple[float, float]) -> str | None:
    """Return what is wrong with an argument beside the default of its parameter; None for a sound one.

    Lists are let through, one value for each block, and None, but for a number that is declared as one and no more.
    """
    (least, most), default = bounds, parameter.default
    if parameter.annotation in (int, float, "int", "float") and not isinstance(value, int | float | list | tuple):
        return f"expected a value like {default!r}, got {short(value)}"
    if parameter.annotation in (float, "float") and isinstance(value, list | tuple):
        return f"expected one value like {default!r}, got {short(value)}"
    for each in flat(value):
        number = isinstance(each, int | float) and not isinstance(each, bool)
        if number and not least <= each <= most:  # nor is a number that is none
            return f"expected a number of {least:.12g}..{most:.12g}, got {short(each)}"
        if each is not None and default is not None and not _alike(each, _first(default)):
            return f"expected a value like {_first(default)!r}, got {short(each)}"
    return None


def _alike(value: Any, default: Any) -> bool:
    if isinstance(default, bool) and value in (0, 1):  # as JSON of other tools has it
        return True
    for kinds in (bool, int | float, str):
        if isinstance(default, kinds):
            return isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))
    return True


def flat(value: Any) -> Iterator[Any]:
    """The values in a value, or in lists of them however deep."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, list | tuple):
            left.extend(reversed(each))
        else:
            yield each


def _first(value: Any) -> Any:
    return next(flat(value), None)
