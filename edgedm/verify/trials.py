"""Inputs that try a kernel: seeded random ones, and those where implementations go wrong.

Signs meet exact zeros, -0.0, infinities and NaN; quantisers meet exact ties and values beyond their range; products
are run with neutral epilogues, so that the integer accumulator itself comes out; norms meet constant channels and
gamma = 0, which makes their output a constant that sits exactly on a tie or a threshold.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.ops.packing import pack_rows, unpack_rows
from edgedm.verify import uniform_trials
from edgedm.verify.judge import run_op
from edgedm.verify.subject import LARGE_STEP, Special, Subject, Trial, neutral

Array = NDArray[Any]


def trials(subject: Subject, seed: int = 0) -> Iterator[Trial]:
    """Yield the trials of one op."""
    rng = np.random.default_rng(seed)
    uniform = subject.op in uniform_trials.SPECIAL
    yield Trial("random", uniform_trials.draw(subject, rng) if uniform else _random(subject, rng))
    for special in (*_SPECIAL.get(subject.op, ()), *uniform_trials.SPECIAL.get(subject.op, ())):
        trial = special(subject, rng)
        if trial is not None:
            yield trial


def _random(subject: Subject, rng: np.random.Generator) -> dict[str, Array]:
    return {role: _draw(subject, role, rng) for role in subject.runtime()}


def _draw(subject: Subject, role: str, rng: np.random.Generator) -> Array:
    shape = subject.shapes[role]
    if role == "bits":
        return pack_rows(rng.random((*shape[:-1], subject.attributes["channels"])) < 0.5)
    if role == "codes":
        return rng.integers(-8, 8, shape).astype(np.int8)
    if subject.op == "UpsampleNearest" and subject.dtypes[role] != np.float32:  # codes or packed bits: any bytes
        return rng.integers(0, 256, shape).astype(np.uint8).view(subject.dtypes[role])
    spread = 3.0 * float(subject.constants["step"]) if "step" in subject.constants else 1.0
    offset = rng.standard_normal(shape[-1:]) if subject.op.startswith("GroupNorm") else 0.0
    return (spread * (rng.standard_normal(shape) + offset)).astype(np.float32)


def _signs(subject: Subject, rng: np.random.Generator) -> Trial:
    """x + threshold exactly 0, next to 0, +-0 themselves, infinite, NaN."""
    x, threshold = _draw(subject, "x", rng), subject.constants["threshold"].astype(np.float32)
    rows = x.reshape(-1, x.shape[-1])
    zero = np.float32(0.0)
    edges = [-threshold, np.nextafter(-threshold, -np.inf), np.nextafter(-threshold, np.inf)]
    edges += [np.full_like(threshold, value) for value in (zero, -zero, np.inf, -np.inf, np.nan, 1e-45)]
    for row, edge in zip(rows, edges, strict=False):
        row[:] = edge
    return Trial("edges of the sign", {"x": x})


def _ties(subject: Subject, rng: np.random.Generator) -> Trial:
    """x / step exactly between two codes, beyond the range, infinite, NaN."""
    x, step = _draw(subject, "x", rng), subject.constants["step"].astype(np.float32)
    flat = x.reshape(-1)
    values = [*np.arange(-10, 10) + 0.5, *np.arange(-10, 10), 1e30, -1e30, np.inf, -np.inf, np.nan, -0.0]
    edges = (np.array(values) * step).astype(np.float32)
    count = flat.size // 2 if flat.size > edges.size else flat.size
    flat[:count] = np.resize(edges, count)
    return Trial("ties", {"x": x})


def _accumulator(subject: Subject, rng: np.random.Generator) -> Trial:
    role = next(iter(subject.names))
    return neutral(subject, {role: _draw(subject, role, rng)})


def _largest_accumulator(subject: Subject, _rng: np.random.Generator) -> Trial:
    """Operands that follow the signs of the first filter, so that its sum is as large as it gets."""
    role = next(iter(subject.names))
    shape = subject.shapes[role]
    channels = subject.attributes.get("channels", shape[-1])
    filters = unpack_rows(subject.constants["weight"][0], channels)
    votes = filters.reshape(-1, channels).sum(0) >= 0
    row = pack_rows(votes) if role == "bits" else np.where(votes, 7, -8).astype(np.int8)
    return replace(neutral(subject, {role: np.broadcast_to(row, shape).copy()}), name="largest accumulator")


def _flat_norm(subject: Subject, rng: np.random.Generator) -> Trial:
    """Channels that are constant over all pixels, some groups without any variance."""
    x = _draw(subject, "x", rng)
    channels = x.shape[-1]
    x[..., : channels // 2] = rng.standard_normal(channels // 2).astype(np.float32)
    x[..., : channels // subject.attributes["groups"]] = np.float32(0.375)
    others = uniform_trials.draw(subject, rng) if subject.op in uniform_trials.SPECIAL else {}
    return Trial("constant channels", {**others, "x": x})


def _norm_on_threshold(subject: Subject, rng: np.random.Generator) -> Trial:
    """gamma = 0 and large beta: the output is beta, and half of the thresholds are exactly -beta."""
    channels = subject.shapes["x"][-1]
    beta = (32 + rng.integers(0, 64, channels)).astype(np.float32)
    above = np.nextafter(beta, np.float32(np.inf), dtype=np.float32)
    threshold = -np.where(np.arange(channels) % 2 == 0, beta, above)
    constants = {"gamma": np.zeros(channels, np.float32), "beta": beta, "threshold": threshold.astype(np.float32)}
    return Trial("norm on the threshold", _random(subject, rng), constants)


def _norm_on_tie(subject: Subject, rng: np.random.Generator) -> Trial:
    """gamma = 0 and beta on a tie: sigmoid never exceeds 1, so the code is at most that of beta itself."""
    channels = subject.shapes["x"][-1]
    step = np.array(LARGE_STEP, np.float32)
    beta = ((np.arange(channels) % 8 + 0.5) * step).astype(np.float32)
    limits = {"low": subject.attributes.get("low", -8), "high": subject.attributes.get("high", 7)}
    codes = run_op("QuantizeCodes", {"x": beta, "step": step}, limits, 1)[0]
    ceiling = np.broadcast_to(codes, subject.shapes["x"])
    constants = {"gamma": np.zeros(channels, np.float32), "beta": beta}
    constants["step"] = step.reshape(subject.shapes["step"])
    return Trial("norm on ties", _random(subject, rng), constants, {subject.node.output[0]: ceiling})


_SPECIAL: dict[str, tuple[Special, ...]] = {
    **dict.fromkeys(("PackBits", "PackBitsMeanAbs"), (_signs,)),
    **dict.fromkeys(
        ("BinaryConv", "BinaryGemm", "BinaryWeightConv", "BinaryWeightGemm"), (_accumulator, _largest_accumulator)
    ),
    **dict.fromkeys(("GroupNorm", "GroupNormSilu", "GroupNormSiluQuantizeUniform"), (_flat_norm,)),
    "QuantizeCodes": (_ties,),
    "GroupNormSiluPack": (_flat_norm, _norm_on_threshold),
    "GroupNormSiluQuantize": (_flat_norm, _norm_on_tie),
}
