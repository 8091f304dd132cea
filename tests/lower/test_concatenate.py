"""Concatenation of large tensors: every row from its parts, in shares of the threads."""

import numpy as np
import pytest
import tvm

from edgedm.lower.concatenate import WORTH_THREADS, concatenation
from edgedm.targets import resolve
from edgedm.targets.kernels.spec import TensorSpec

BIG_CORES = 1  # TVM's name for any cores


@pytest.fixture
def two_threads(monkeypatch):
    """Two threads on any machine, so that a race would show, whatever a test before has set."""
    monkeypatch.setenv("TVM_NUM_THREADS", "2")
    monkeypatch.setenv("TVM_BIND_THREADS", "0")  # or the pool would keep this process on one core
    tvm.get_global_func("runtime.config_threadpool")(BIG_CORES, 2)
    assert tvm.runtime.num_threads() == 2


@pytest.mark.parametrize(
    ("shapes", "dtype", "axis", "shared"),
    [
        ([(1, 32, 8, 96), (1, 32, 8, 40)], "float32", 3, True),
        ([(1, 37, 11, 65), (1, 37, 11, 3), (1, 37, 11, 17)], "int8", 3, True),
        ([(1, 5, 7), (1, 2, 7), (1, 3, 7)], "float32", 1, False),
        ([(1, 64, 32, 16), (1, 1, 32, 16)], "float32", 1, False),  # one row: nothing to share
    ],
)
def test_rows_are_joined_and_shared_where_that_pays(two_threads, shapes, dtype, axis, shared):
    function, result = concatenation([TensorSpec(shape, dtype) for shape in shapes], axis)
    assert result.size >= WORTH_THREADS or not shared
    name = str(function.attrs["global_symbol"])
    library = tvm.compile(tvm.IRModule({name: function}), resolve("x86-64").tvm())
    assert ("parallel_lambda" in library.mod.inspect_source("asm")) == shared
    rng = np.random.default_rng(0)
    parts = [(rng.standard_normal(shape) * 50).astype(dtype) for shape in shapes]
    unwritten = np.full(result.shape, np.nan if dtype == "float32" else -128, dtype)
    made = [tvm.runtime.tensor(part) for part in (*parts, unwritten)]
    library[name](*made)
    np.testing.assert_array_equal(made[-1].numpy(), np.concatenate(parts, axis))
