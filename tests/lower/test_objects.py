"""Kernels are compiled side by side into one object whose bytes depend on nothing but the kernels."""

import pytest
from tvm import te

from edgedm.lower import objects
from edgedm.lower.objects import SYMBOL, write_object
from edgedm.targets import resolve


def doubled(extent: int):
    x = te.placeholder((extent,), name="x")
    return te.create_prim_func([x, te.compute((extent,), lambda i: x[i] * extent, name="y")])


def compiled(folder, cores: int, monkeypatch) -> bytes:
    monkeypatch.setattr(objects.os, "sched_getaffinity", lambda _: set(range(cores)))
    functions = {f"kernel{extent}": doubled(extent) for extent in range(2, 15)}
    path = folder / f"{cores}.o"
    write_object(functions, "edm_test_", resolve("x86-64-v3").tvm(), path)
    return path.read_bytes()


def test_the_object_is_the_same_on_any_number_of_cores_and_has_every_kernel(tmp_path, monkeypatch) -> None:
    data = compiled(tmp_path, 1, monkeypatch)
    assert data == compiled(tmp_path, 3, monkeypatch)
    assert all(f"{SYMBOL}edm_test_kernel{extent}\0".encode() in data for extent in range(2, 15))
    assert {path.name for path in tmp_path.iterdir()} == {"1.o", "3.o"}
    assert b"__tvm_ffi_main\0" not in data
    assert b".debug_" not in data  # nearly half of what TVM writes
    assert b"TVMFFIErrorSetRaised" not in data  # the runtime binds arguments once, so no kernel checks its own


def test_a_kernel_that_does_not_compile_is_an_error_and_writes_nothing(tmp_path) -> None:
    with pytest.raises(AttributeError):
        write_object({"good": doubled(3), "bad": None}, "edm_test_", resolve("x86-64-v3").tvm(), tmp_path / "kernels.o")
    assert not list(tmp_path.iterdir())
