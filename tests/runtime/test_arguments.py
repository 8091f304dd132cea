"""What the C functions refuse of a caller's arguments: a status and a message instead of a crash or of NaN."""

import ctypes
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from edgedm.bundle import load
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.runtime import library as lib
from edgedm.runtime.library import Library

FLOATS = 64
IMAGE = (ctypes.c_float * FLOATS)()


@pytest.fixture(scope="module")
def library(tiny_bundle) -> Library:
    return Library(tiny_bundle / "lib/libedgedm.so", load(tiny_bundle).manifest.prefix)


@pytest.fixture(scope="module")
def model(tiny_bundle, library) -> Iterator[ctypes.c_void_p]:
    made = ctypes.c_void_p()
    path = bytes(tiny_bundle / "weights.bin")
    library.check("open", ctypes.byref(lib.source_of(None, path=path)), ctypes.byref(made))
    yield made
    library.call("close", made)


@pytest.fixture
def session(library, model) -> Iterator[ctypes.c_void_p]:
    made = ctypes.c_void_p()
    library.check("session_create", model, ctypes.byref(lib.SessionOptions(threads=1)), ctypes.byref(made))
    yield made
    library.call("session_free", made)


def _prepare(library, session, **conditions) -> None:
    schedule = lib.Schedule(steps=5, sampler=lib.SAMPLERS["ddim"])
    library.check("prepare", session, ctypes.byref(schedule), ctypes.byref(lib.Conditions(**conditions)))


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), -float("inf")])
def test_guidance_that_is_not_finite_is_refused(library, session, guidance):
    with pytest.raises(UnsupportedError, match="guidance: expected a finite number"):
        _prepare(library, session, label=1, guidance=guidance)


@pytest.mark.parametrize("eta", [float("nan"), float("inf")])
def test_eta_that_is_not_finite_is_refused(library, session, eta):
    schedule = lib.Schedule(steps=5, sampler=lib.SAMPLERS["ddim"], eta=eta)
    with pytest.raises(UnsupportedError, match=r"eta: expected 0\.\.1"):
        library.check("prepare", session, ctypes.byref(schedule), ctypes.byref(lib.Conditions(label=1)))


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_strength_that_is_not_finite_is_refused(library, session, strength):
    _prepare(library, session, label=1)
    options = lib.SampleOptions(images=1, start=IMAGE, strength=strength)
    for name, more in (("sample", (IMAGE, lib.ProgressFunction(), None)), ("begin", ())):
        with pytest.raises(UnsupportedError, match="strength: expected above 0"):
            library.check(name, session, ctypes.byref(options), *more)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_start_images_that_are_not_finite_are_refused(library, session, value):
    _prepare(library, session, label=1)
    start, images = (ctypes.c_float * (2 * FLOATS))(), (ctypes.c_float * (2 * FLOATS))()
    start[FLOATS + 5] = value
    options = lib.SampleOptions(images=2, start=start, strength=1.0)
    with pytest.raises(UnsupportedError, match="start: value 5 of image 1 is not finite"):
        library.check("sample", session, ctypes.byref(options), images, lib.ProgressFunction(), None)
    library.check("begin", session, ctypes.byref(options))  # draws the first alone
    start[7] = value
    with pytest.raises(UnsupportedError, match="start: value 7 of image 0 is not finite"):
        library.check("begin", session, ctypes.byref(options))
    assert library.call("steps_left", session) == 0


def test_numbers_of_images_do_not_wrap(library, session):
    _prepare(library, session, label=1)
    images, last = (ctypes.c_float * (2 * FLOATS))(), 2**32 - 1
    more = (images, lib.ProgressFunction(), None)
    library.check("sample", session, ctypes.byref(lib.SampleOptions(images=1, first_image=last)), *more)
    with pytest.raises(UnsupportedError, match=f"first_image {last}: the numbers of 2 images end beyond"):
        library.check("sample", session, ctypes.byref(lib.SampleOptions(images=2, first_image=last)), *more)


def test_null_is_refused_by_the_name_of_the_function(library, model, session, tmp_path):
    _prepare(library, session, label=1)
    pointer, nothing = ctypes.c_void_p(), lib.ProgressFunction()
    source, options = ctypes.byref(lib.Source()), ctypes.byref(lib.SessionOptions())
    schedule, conditions = ctypes.byref(lib.Schedule(steps=5)), ctypes.byref(lib.Conditions(label=1))
    draw, timesteps = ctypes.byref(lib.SampleOptions(images=1)), (ctypes.c_int64 * 5)()
    calls = {
        "open": (source, ctypes.byref(pointer)),
        "session_create": (model, options, ctypes.byref(pointer)),
        "prepare": (session, schedule, conditions),
        "timesteps": (session, timesteps),
        "step": (session, 0, IMAGE, IMAGE),
        "reset": (session,),
        "state_read": (session, 0, IMAGE),
        "state_write": (session, 0, IMAGE),
        "begin": (session, draw),
        "current": (session, IMAGE),
        "decode": (session, IMAGE, IMAGE),
        "run_node": (session, b"step", 0, (ctypes.c_void_p * 1)(), (ctypes.c_void_p * 1)()),
        "profile": (session, 0, IMAGE, (ctypes.c_uint64 * 1)()),
        "write_images": (bytes(tmp_path / "a.npy"), IMAGE, 1),
        "write_decoded": (bytes(tmp_path / "a.npy"), IMAGE, 1),
    }
    for name, arguments in calls.items():
        for at, argument in enumerate(arguments):
            if isinstance(argument, int):
                continue
            given = (*arguments[:at], None, *arguments[at + 1 :])
            with pytest.raises(UnsupportedError, match=f"edm_{name}: an argument .* is NULL"):
                library.check(name, *given)
    for given in ((None, draw, IMAGE), (session, None, IMAGE), (session, draw, None)):
        with pytest.raises(UnsupportedError, match=r"edm_sample: an argument .* is NULL"):
            library.check("sample", *given, nothing, None)
    with pytest.raises(UnsupportedError, match="edm_next"):
        library.check("next", None, None)
    with pytest.raises(UnsupportedError, match="edm_pin_thread"):
        library.check("pin_thread", None, 1)
    assert library.call("steps_left", None) == 0
    assert library.call("session_bytes", None) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"lanes": 2**31 - 1, "threads": 2}, {"threads": 1025}, {"lanes": -1}])
def test_a_session_that_cannot_be_needs_no_bytes(library, model, options):
    options = lib.SessionOptions(**options)
    assert library.call("session_bytes", ctypes.byref(options)) == 0
    with pytest.raises(UnsupportedError, match=r"threads and lanes: expected 0\.\.1024"):
        library.check("session_create", model, ctypes.byref(options), ctypes.byref(ctypes.c_void_p()))


@pytest.mark.parametrize(
    ("offset", "length", "message"),
    [
        (0, 1, r"expected {} bytes of weights, found 1$"),
        (0, 2**63, r"9223372036854775808 bytes at offset 0 go beyond its end"),
        (1, 0, r"expected {} bytes of weights, found {less}$"),
        (1, None, r"{} bytes at offset 1 go beyond its end"),
        (2**40, 0, r"offset 1099511627776 is beyond its end"),
    ],
)
def test_a_part_of_a_file_that_holds_no_weights_is_refused(tiny_bundle, library, offset, length, message):
    file = tiny_bundle / "weights.bin"
    size = file.stat().st_size
    source = lib.source_of(None, path=bytes(file))
    source.offset, source.length = offset, size if length is None else length
    with pytest.raises(InvalidModelError, match=message.format(size, less=size - 1)):
        library.check("open", ctypes.byref(source), ctypes.byref(ctypes.c_void_p()))


@pytest.mark.parametrize("images", [1, 2])  # with parallel kernels, and in lanes
def test_a_callback_may_not_use_the_session_that_draws(library, model, images):
    session, other = ctypes.c_void_p(), ctypes.c_void_p()
    for made in (session, other):
        options = lib.SessionOptions(threads=2)
        library.check("session_create", model, ctypes.byref(options), ctypes.byref(made))
        _prepare(library, made, label=1)
    schedule, conditions = ctypes.byref(lib.Schedule(steps=5)), ctypes.byref(lib.Conditions(label=1))
    draw, drawn = ctypes.byref(lib.SampleOptions(images=images)), (ctypes.c_float * (images * FLOATS))()
    refused: list[str] = []
    calls = {
        "prepare": (schedule, conditions),
        "step": (0, IMAGE, IMAGE),
        "reset": (),
        "state_read": (0, IMAGE),
        "state_write": (0, IMAGE),
        "begin": (draw,),
        "next": (None,),
        "current": (IMAGE,),
        "sample": (draw, drawn, lib.ProgressFunction(), None),
        "decode": (IMAGE, IMAGE),
        "run_node": (b"step", 0, (ctypes.c_void_p * 1)(), (ctypes.c_void_p * 1)()),
        "profile": (0, IMAGE, (ctypes.c_uint64 * 1)()),
    }

    def progress(_user, _done, _total):
        for name, arguments in calls.items():
            with pytest.raises(UnsupportedError, match=f"edm_{name}: the session is in use"):
                library.check(name, session, *arguments)
            refused.append(name)
        library.check("step", other, 0, IMAGE, (ctypes.c_float * FLOATS)())  # another session is free
        return 0

    library.check("sample", session, draw, drawn, lib.ProgressFunction(), None)
    alone = list(drawn)
    library.check("sample", session, draw, drawn, lib.ProgressFunction(progress), None)
    assert list(drawn) == alone
    assert refused == [*calls] * 5 * images
    library.check("sample", session, draw, drawn, lib.ProgressFunction(), None)  # and it is free again
    for made in (session, other):
        library.call("session_free", made)


def test_what_comes_before_prepare_or_without_a_decoder_is_said(library, session, tmp_path):
    with pytest.raises(UnsupportedError, match="edm_step before edm_prepare"):
        library.check("step", session, 0, IMAGE, IMAGE)
    with pytest.raises(UnsupportedError, match="edm_profile before edm_prepare"):
        library.check("profile", session, 0, IMAGE, (ctypes.c_uint64 * 1)())
    with pytest.raises(UnsupportedError, match="edm_write_decoded: this model draws images"):
        library.check("write_decoded", bytes(tmp_path / "a.npy"), IMAGE, 1)
    assert not list(tmp_path.iterdir())


def test_what_is_not_made_is_null_whichever_argument_is_missing(library, model):
    made = ctypes.c_void_p(1)
    with pytest.raises(UnsupportedError, match="NULL"):
        library.check("open", None, ctypes.byref(made))
    assert made.value is None
    made = ctypes.c_void_p(1)
    with pytest.raises(UnsupportedError, match="NULL"):
        library.check("session_create", model, None, ctypes.byref(made))
    assert made.value is None


def test_a_link_where_a_scratch_file_would_be_is_not_followed(library, model, tmp_path):
    precious, output = tmp_path / "precious", tmp_path / "a.npy"
    precious.write_text("kept")
    for number in range(3):
        (tmp_path / f".a.npy.{os.getpid()}.{number}.part").symlink_to(precious)
    library.check("write_images", bytes(output), IMAGE, 1)
    assert precious.read_text() == "kept" and not output.is_symlink()
    assert np.load(output).shape == (1, 1, 8, 8)


def test_two_threads_write_one_file_and_it_is_always_one_of_theirs(library, model, tmp_path):
    """Calls through ctypes run at the same time."""
    output, count = tmp_path / "a.npy", 500
    images = [(ctypes.c_float * (count * FLOATS))(*[value] * (count * FLOATS)) for value in (1.0, 2.0)]
    library.check("write_images", bytes(output), images[0], count)
    failures: list[Exception] = []

    def write(values: object) -> None:
        try:
            for _ in range(50):
                library.check("write_images", bytes(output), values, count)
        except Exception as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(each,)) for each in images]
    for each in writers:
        each.start()
    while any(each.is_alive() for each in writers):
        found = np.load(output)
        assert found.shape == (count, 1, 8, 8) and np.ptp(found) == 0
    assert not failures and list(tmp_path.iterdir()) == [output]
