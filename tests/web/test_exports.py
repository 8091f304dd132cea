"""What a page calls, as the functions of the module that it loads."""

import pytest
import wasmtime

from edgedm.bundle import load


@pytest.mark.slow
def test_memory_that_the_module_cannot_have_is_refused(wasm_bundle):
    """No size is rounded up to one near 0, of which the page would overrun what it gets."""
    engine = wasmtime.Engine()
    store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
    store.set_wasi(wasmtime.WasiConfig())
    linker.define_wasi()
    module = wasmtime.Module.from_file(engine, str(load(wasm_bundle).library))
    exports = linker.instantiate(store, module).exports(store)
    exports["_initialize"](store)
    assert exports["edm_allocate"](store, 100) % 64 == 0
    assert exports["edm_allocate"](store, 100) != 0
    for size in (-1, -32, -64):  # as the unsigned number
        assert exports["edm_allocate"](store, size) == 0
    small = exports["edm_allocate"](store, 64)
    assert exports["edm_start"](store, small, 64) != 0  # not the weights
