"""The exceptions that edgedm raises on purpose; anything else that escapes is a bug of edgedm.

A message says what was wrong, where (node, layer or file), what was expected and what to do about it.
"""


class EdgedmError(Exception):
    """Base of every error that edgedm reports to its user (the command line exits with 2)."""


class UnsupportedError(EdgedmError):
    """The model asks for something that edgedm cannot do: names the node and the way round."""


class InvalidModelError(EdgedmError):
    """A file is missing, broken, altered or hostile."""


class ParityError(EdgedmError):
    """Numbers differ: where, by how much, and what was allowed."""


class ToolchainError(EdgedmError):
    """A compiler, a package or a device is missing: how to get it."""
