"""The exceptions that edgedm raises on purpose; anything else that escapes is a bug of edgedm.

A message says what was wrong, where (node, layer or file), what was expected and what to do about it. It often quotes
a file, which may hold anything; what reaches a terminal or a log is text of bounded length.
"""

import math
from typing import Any

LONGEST = 10_000  # characters of a message
MOST_SHOWN = 80  # characters of a value in one


class EdgedmError(Exception):
    """Base of every error that edgedm reports to its user (the command line exits with 2)."""

    def __str__(self) -> str:
        text = readable(super().__str__())
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


class UnsupportedError(EdgedmError):
    """The model asks for something that edgedm cannot do: names the node and the way round."""


class InvalidModelError(EdgedmError):
    """A file is missing, broken, altered or hostile."""


class ParityError(EdgedmError):
    """Numbers differ: where, by how much, and what was allowed."""


class ToolchainError(EdgedmError):
    """A compiler, a package or a device is missing: how to get it."""


def readable(text: str) -> str:
    """Return `text` with escapes for what is no printable character nor the end of a line, as a terminal obeys some."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def short(value: Any) -> str:
    """Return a value as it is written in Python, or so much of it as fits into a message."""
    if isinstance(value, int) and abs(value) >= 10**MOST_SHOWN:
        return f"a number of {int(math.log10(abs(value))) + 1} digits"
    try:
        text = repr(value)
    except ValueError:  # of a list with a number that Python writes for nobody
        return f"a {type(value).__name__} with a number of thousands of digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
