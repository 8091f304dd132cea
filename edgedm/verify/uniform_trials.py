"""Trials of the ops on uniform grids: run-time steps and zero points, exact ties, the largest sums of either sign."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.verify.judge import run_op
from edgedm.verify.subject import LARGE_STEP, Special, Subject, Trial, neutral

Array = NDArray[Any]

_WIDTHS = {"codes": "bits", "zero": "bits", "a": "bits", "a_zero": "bits", "b": "other_bits", "b_zero": "other_bits"}
"""Operands that are codes on a grid, and the attribute that says how wide that is."""
_STEPS = ("step", "a_step", "b_step")
_TIE_STEP, _TIE_DIVISOR = 0.25, 0.5  # powers of two: ties stay ties through both divisions


def draw(subject: Subject, rng: np.random.Generator) -> dict[str, Array]:
    """Random values of all run-time operands; a quantiser's input covers its grid and a little more."""
    feeds: dict[str, Array] = {}
    for role in subject.runtime():
        shape = subject.shapes[role]
        if role in _WIDTHS:
            feeds[role] = np.asarray(rng.integers(0, _top(subject, role) + 1, shape), np.uint8)
        elif role in _STEPS:
            feeds[role] = np.asarray(rng.uniform(0.1, 0.4, shape), np.float32)
        else:
            feeds[role] = np.asarray(rng.standard_normal(shape), np.float32)
    if subject.op.startswith("GroupNorm"):
        feeds["x"] += rng.standard_normal(subject.shapes["x"][-1:]).astype(np.float32)
    elif "x" in subject.names:
        codes = rng.uniform(-2, _top(subject, "zero") + 2, subject.shapes["x"])
        feeds["x"] = _at_codes(subject, {**subject.constants, **feeds}, codes)
    return feeds


def _top(subject: Subject, role: str) -> int:
    return int(2 ** subject.attributes.get(_WIDTHS[role], 4) - 1)


def _at_codes(subject: Subject, known: Mapping[str, Array], codes: Array) -> Array:
    """What a quantiser is fed to arrive at these codes, which need not be whole numbers; one grid a head."""
    zero, step = (np.asarray(known[role], np.float64) for role in ("zero", "step"))
    if zero.ndim:
        zero, step = zero[:, None, None], step[:, None, None]
    divisor = np.asarray(known.get("divisor", 1.0), np.float64)
    return np.asarray((codes - zero) * step * divisor, np.float32).reshape(subject.shapes["x"])


def _ties(subject: Subject, rng: np.random.Generator) -> Trial:
    """(x / divisor) / step exactly between two codes, beyond the range, infinite, NaN."""
    feeds = draw(subject, rng)
    constants: dict[str, Array] = {}
    _set(subject, feeds, constants, "step", _TIE_STEP)
    if subject.shapes.get("divisor", (1,)) != (1,):
        _set(subject, feeds, constants, "divisor", _TIE_DIVISOR)
    top = _top(subject, "zero")
    whole = np.arange(-3, top + 4)
    codes = np.resize(np.concatenate([whole + 0.5, whole]), subject.shapes["x"])
    x = _at_codes(subject, {**subject.constants, **feeds, **constants}, codes)
    x.reshape(-1)[-6:] = [1e30, -1e30, np.inf, -np.inf, np.nan, -0.0]
    return Trial("ties", {**feeds, "x": x}, constants)


def _set(subject: Subject, feeds: dict[str, Array], constants: dict[str, Array], role: str, value: float) -> None:
    (constants if role in subject.constants else feeds)[role] = np.full(subject.shapes[role], value, np.float32)


def _norm_on_tie(subject: Subject, rng: np.random.Generator) -> Trial:
    """gamma = 0 and beta on a tie: sigmoid never exceeds 1, so the code is at most that of beta itself."""
    feeds, channels = draw(subject, rng), subject.shapes["x"][-1]
    constants: dict[str, Array] = {"gamma": np.zeros(channels, np.float32)}
    _set(subject, feeds, constants, "step", LARGE_STEP)
    if subject.shapes["divisor"] != (1,):
        _set(subject, feeds, constants, "divisor", _TIE_DIVISOR)
    grid = {role: {**subject.constants, **feeds, **constants}[role] for role in ("divisor", "step", "zero")}
    ties = np.arange(channels) % (_top(subject, "zero") + 1) + 0.5
    constants["beta"] = (ties * LARGE_STEP * grid["divisor"]).astype(np.float32)
    width = {"bits": subject.attributes.get("bits", 4)}
    codes = run_op("QuantizeUniform", {"x": constants["beta"], **grid}, width, 1)[0]
    ceiling = np.broadcast_to(codes, subject.shapes["x"])
    return Trial("norm on ties", feeds, constants, {subject.node.output[0]: ceiling})


def _accumulator(subject: Subject, rng: np.random.Generator) -> Trial:
    drawn = draw(subject, rng)
    return neutral(subject, {role: array for role, array in drawn.items() if role in _WIDTHS})


def _largest_accumulator(subject: Subject, _rng: np.random.Generator) -> Trial:
    """Codes that follow the signs of the first filter, so that its sum is as large as it gets."""
    return _extreme(subject, "largest accumulator", 1)


def _smallest_accumulator(subject: Subject, _rng: np.random.Generator) -> Trial:
    return _extreme(subject, "smallest accumulator", -1)


def _extreme(subject: Subject, name: str, sign: int) -> Trial:
    """All of `sign` times every difference from a zero point: it is 0 where codes shall be large, top where small."""
    integers: dict[str, Array] = {}
    for role in (role for role in subject.runtime() if role in _WIDTHS):
        top, shape = _top(subject, role), subject.shapes[role]
        large = role.startswith("b") or sign > 0
        if role in ("codes", "a", "b"):
            integers[role] = np.full(shape, top if large else 0, np.uint8)
        else:
            integers[role] = np.full(shape, 0 if large else top, np.uint8)
    if "codes" in integers:
        weight = np.asarray(subject.constants["weight"][0]).astype(np.int64)
        centred = weight.reshape(-1, weight.shape[-1]) - int(subject.constants["weight_zero"][0])
        row = np.where(centred.sum(axis=0) * sign >= 0, _top(subject, "codes"), 0).astype(np.uint8)
        integers["codes"] = np.broadcast_to(row, subject.shapes["codes"]).copy()
        if "zero" in integers:
            integers["zero"] = np.zeros(subject.shapes["zero"], np.uint8)
    return replace(neutral(subject, integers), name=name)


_SUMS: tuple[Special, ...] = (_accumulator, _largest_accumulator, _smallest_accumulator)

SPECIAL: dict[str, tuple[Special, ...]] = {
    **dict.fromkeys(("QuantizeUniform", "QuantizeHeads"), (_ties,)),
    **dict.fromkeys(("QuantConv", "QuantGemm", "QuantMatMul"), _SUMS),
    "GroupNormSiluQuantizeUniform": (_norm_on_tie,),
}
"""Op -> its trials besides random ones."""
