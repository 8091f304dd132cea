"""Concatenation of large tensors: every row from its parts, in shares of the threads."""

import numpy as np
import pytest
import tvm

from edgedm.lower.concatenate import WORTH_THREADS, concatenation
from edgedm.targets import resolve
from edgedm.targets.kernels.spec import TensorSpec


@pytest.mark.parametrize(
    ("shapes", "axis", "shared"),
    [
        ([(1, 32, 8, 96), (1, 32, 8, 40)], 3, True),
        ([(1, 5, 7), (1, 2, 7), (1, 3, 7)], 1, False),
        ([(1, 64, 32, 16), (1, 1, 32, 16)], 1, False),  # one row: nothing to share
    ],
)
def test_rows_are_joined_and_shared_where_that_pays(shapes, axis, shared):
    function, result = concatenation([TensorSpec(shape, "float32") for shape in shapes], axis)
    assert result.size >= WORTH_THREADS or not shared
    name = str(function.attrs["global_symbol"])
    library = tvm.compile(tvm.IRModule({name: function}), resolve("x86-64").tvm())
    assert ("parallel_lambda" in library.mod.inspect_source("asm")) == shared
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    made = [tvm.runtime.tensor(part) for part in (*parts, np.full(result.shape, np.nan, np.float32))]
    library[name](*made)
    np.testing.assert_array_equal(made[-1].numpy(), np.concatenate(parts, axis))
