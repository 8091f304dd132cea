"""ctypes view of a bundle's shared library: structures and signatures of `include/edgedm.h`."""

import ctypes as c
from pathlib import Path
from typing import Any, NoReturn

from edgedm.errors import EdgedmError, InvalidModelError, ToolchainError, UnsupportedError

BAD_ARGUMENT, BAD_FILE, CANCELLED, WRONG_MACHINE = 1, 2, 5, 7
SAMPLERS = {"ddim": 0, "ddpm": 1, "dpm-solver++": 2}


class Source(c.Structure):
    """`edm_source`."""

    _fields_ = (
        ("path", c.c_char_p),
        ("fd", c.c_int),
        ("offset", c.c_uint64),
        ("length", c.c_uint64),
        ("memory", c.c_void_p),
        ("variant", c.c_char_p),
    )


class SessionOptions(c.Structure):
    """`edm_session_options`."""

    _fields_ = (
        ("threads", c.c_int),
        ("lanes", c.c_int),
        ("memory", c.c_void_p),
        ("cores", c.POINTER(c.c_int)),
        ("core_count", c.c_int),
    )


class Schedule(c.Structure):
    """`edm_schedule`."""

    _fields_ = (
        ("steps", c.c_int),
        ("sampler", c.c_int),
        ("eta", c.c_double),
        ("timesteps", c.POINTER(c.c_int64)),
    )


class Conditions(c.Structure):
    """`edm_conditions`."""

    _fields_ = (
        ("label", c.c_int64),
        ("guidance", c.c_float),
        ("encoder_hidden_states", c.POINTER(c.c_float)),
        ("negative_encoder_hidden_states", c.POINTER(c.c_float)),
    )


class SampleOptions(c.Structure):
    """`edm_sample_options`."""

    _fields_ = (
        ("seed", c.c_uint64),
        ("first_image", c.c_uint32),
        ("images", c.c_uint32),
        ("start", c.POINTER(c.c_float)),
        ("strength", c.c_double),
    )


ProgressFunction = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint64, c.c_uint64)

_FLOATS, _POINTER = c.POINTER(c.c_float), c.c_void_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "last_error": (c.c_char_p, []),
    "image_shape": (None, [c.POINTER(c.c_int64)]),
    "decoded_shape": (None, [c.POINTER(c.c_int64)]),
    "condition_shape": (None, [c.POINTER(c.c_int64)]),
    "model_variant": (c.c_char_p, [_POINTER]),
    "open": (c.c_int, [c.POINTER(Source), c.POINTER(_POINTER)]),
    "close": (None, [_POINTER]),
    "session_create": (c.c_int, [_POINTER, c.POINTER(SessionOptions), c.POINTER(_POINTER)]),
    "session_free": (None, [_POINTER]),
    "session_bytes": (c.c_size_t, [c.POINTER(SessionOptions)]),
    "prepare": (c.c_int, [_POINTER, c.POINTER(Schedule), c.POINTER(Conditions)]),
    "timesteps": (c.c_int, [_POINTER, c.POINTER(c.c_int64)]),
    "step": (c.c_int, [_POINTER, c.c_int, _FLOATS, _FLOATS]),
    "reset": (c.c_int, [_POINTER]),
    "state_count": (c.c_int, []),
    "state_bytes": (c.c_uint64, [c.c_int]),
    "state_read": (c.c_int, [_POINTER, c.c_int, _POINTER]),
    "state_write": (c.c_int, [_POINTER, c.c_int, _POINTER]),
    "sample": (c.c_int, [_POINTER, c.POINTER(SampleOptions), _FLOATS, ProgressFunction, _POINTER]),
    "begin": (c.c_int, [_POINTER, c.POINTER(SampleOptions)]),
    "steps_left": (c.c_int, [_POINTER]),
    "next": (c.c_int, [_POINTER, _FLOATS]),
    "current": (c.c_int, [_POINTER, _FLOATS]),
    "big_cores": (c.c_int, [c.POINTER(c.c_int), c.c_int]),
    "pin_thread": (c.c_int, [c.POINTER(c.c_int), c.c_int]),
    "decode": (c.c_int, [_POINTER, _FLOATS, _FLOATS]),
    "normals": (None, [c.c_uint64, c.c_uint32, c.c_uint32, c.c_uint64, _FLOATS]),
    "write_images": (c.c_int, [c.c_char_p, _FLOATS, c.c_uint32]),
    "write_decoded": (c.c_int, [c.c_char_p, _FLOATS, c.c_uint32]),
    "call_count": (c.c_int, [_POINTER]),
    "profile": (c.c_int, [_POINTER, c.c_int, _FLOATS, c.POINTER(c.c_uint64)]),
    "run_node": (c.c_int, [_POINTER, c.c_char_p, c.c_int, c.POINTER(_POINTER), c.POINTER(_POINTER)]),
}


class Library:
    """The functions of one bundle, under their names without the prefix; `closed` is why they are not called now."""

    def __init__(self, path: Path, prefix: str) -> None:
        try:
            self._library = c.CDLL(str(path))
        except OSError as error:
            raise ToolchainError(f"{path}: cannot be loaded here: {error}; compile for this machine") from error
        self._functions = {}
        self.closed: str | None = None
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(self._library, prefix + name)
            except AttributeError as error:
                raise InvalidModelError(
                    f"{path}: function {prefix}{name} is missing; compile the bundle again"
                ) from error
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function that returns a value; raise `closed` as `check` does."""
        self._check_open()
        return self._functions[name](*arguments)

    def shape(self, name: str, rank: int) -> tuple[int, ...] | None:
        """What the library says of one of its shapes; None for zeros."""
        found = (c.c_int64 * rank)()
        self._functions[name](found)
        return tuple(found) if any(found) else None

    def check(self, name: str, *arguments: Any) -> None:
        """Call a function that returns a status; raise what it reports, or `closed`, where that says something."""
        self._check_open()
        status = self._functions[name](*arguments)
        if status:
            raise_status(status, self._functions["last_error"]().decode("utf-8", "replace"))

    def _check_open(self) -> None:
        if self.closed:
            raise UnsupportedError(self.closed)


def source_of(variant: str | None, **place: Any) -> Source:
    """An `edm_source`: where the weights are, and which variant must run (None: the best that can)."""
    return Source(variant=None if variant is None else variant.encode(), **place)


def raise_status(status: int, text: str) -> NoReturn:
    """Raise what an `edm_status` other than EDM_OK and its message say."""
    if status == CANCELLED:
        raise KeyboardInterrupt
    if status == BAD_ARGUMENT:
        raise UnsupportedError(text)
    if status == WRONG_MACHINE:
        raise ToolchainError(text)
    raise InvalidModelError(text) if status == BAD_FILE else EdgedmError(text)
