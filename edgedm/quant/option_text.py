"""Options in words: what each of them takes, and what is wrong with one that was given."""

import difflib
import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}  # by the names that pydantic gives them


def takes(info: FieldInfo) -> str:
    """Return what an option takes, such as "a whole number, at least 1, or null"."""
    kinds = [info.annotation]
    if get_origin(info.annotation) in (Union, types.UnionType):
        kinds = list(get_args(info.annotation))
    nouns = [_noun(kind) for kind in kinds if kind is not type(None)]
    bounds = [
        f", {words} {getattr(bound, name):g}"
        for bound in info.metadata
        for name, words in _BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]
    return " or ".join(nouns) + "".join(bounds) + (", or null" if type(None) in kinds else "")


def complaint(error: ValidationError, options: type[BaseModel], owner: str) -> str:
    """Return what is wrong with the first option that `options`, those of `owner`, did not take."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    known = list(options.model_fields)
    if name not in known and first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"option {name!r}: {owner} has none of this name; {hint}it has {', '.join(known) or 'no options'}"
    if first["type"] == "value_error":  # raised by an option's own check, which says what it expects
        where = f"option {name!r} of {owner}: " if name else f"options of {owner}: "
        return where + str(first["ctx"]["error"])
    if name not in known:
        return f"options of {owner}: {first['msg']}"
    expected = takes(options.model_fields[name])
    if first["type"] == "missing":
        return f"option {name!r} of {owner} must be given: {expected}"
    return f"option {name!r} of {owner}: expected {expected}, got {first['input']!r}"


def _noun(kind: Any) -> str:
    if get_origin(kind) is Literal:
        values = [str(value) for value in get_args(kind)]
        return " or ".join((", ".join(values[:-1]), values[-1])) if len(values) > 1 else values[0]
    return _NOUNS.get(kind, getattr(kind, "__name__", str(kind)))
