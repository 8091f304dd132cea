"""Decisions about denormal numbers on ARM: ARMv7's vectors take them for 0, the kernels must not."""

import numpy as np
import pytest
from kernel_cases import Case, reference, run_kernels

from edgedm.targets import resolve

pytestmark = pytest.mark.slow

SMALL = np.array([1e-45, 1e-39, 1.1e-38, 1.2e-38, 1e-30, 0.0], np.float32)


def cases():
    x = np.resize(np.concatenate([SMALL, -SMALL]), (1, 3, 3, 70)).astype(np.float32)
    for threshold in (0.0, 1e-39, -1e-39, 1.2e-38):
        yield Case("PackBits", [x, np.full(70, threshold, np.float32)])
    for step in (1e-39, 1e-38):
        yield Case("QuantizeCodes", [x, np.array([step], np.float32)], runtime=frozenset({0, 1}))


@pytest.mark.parametrize("target", ["aarch64", "armv7+neon"])
def test_denormal_activations_are_decided_like_any_others(target):
    every = list(cases())
    for case, got in zip(every, run_kernels(every, resolve(target)), strict=True):
        for array, wanted in zip(got, reference(case), strict=True):
            assert array.tobytes() == wanted.tobytes(), (case.op, case.inputs[1].reshape(-1)[0])
