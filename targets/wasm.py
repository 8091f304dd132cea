"""WebAssembly with 128-bit vectors (simd128): what browsers run, and wasmtime on this machine."""

import importlib.util
import sys

from edgedm.targets.level import Emulator, Level

_PACKAGE = "wasmtime"

# WASI has no processes, signals or memory maps; its C library imitates the little of them that the runtime asks for.
_IMITATED = ("MMAN", "SIGNAL", "PROCESS_CLOCKS", "GETPID")


class Engine(Emulator):
    """A Python package that compiles and runs WebAssembly, in a process of its own."""

    @property
    def is_here(self) -> bool:
        """See `Emulator`."""
        return importlib.util.find_spec(_PACKAGE) is not None

    @property
    def source(self) -> str:
        """See `Emulator`."""
        return "pip install 'edgedm[web]'"

    def command(self, features: frozenset[str]) -> tuple[str, ...]:
        """See `Emulator`; every engine has all features."""
        return (sys.executable, "-m", "edgedm.runtime.wasi")

    def shown(self, features: frozenset[str]) -> str:
        """See `Emulator`."""
        return self.program


WASM32 = Level(
    name="wasm32",
    isa="wasm32",
    features=frozenset(),
    extras={"simd128": "simd128"},
    required=frozenset({"simd128"}),
    cpu="generic",
    triple="wasm32-unknown-unknown",
    abi=(("vector-width", 128),),
    program_triple="wasm32-wasi",
    library_triple="wasm32-wasi",
    c_flags=("-mcpu=generic+simd128", "-fno-PIC", *(f"-D_WASI_EMULATED_{name}" for name in _IMITATED)),
    link_flags=("-s", *(f"-lwasi-emulated-{name.lower().replace('_', '-')}" for name in _IMITATED)),
    emulator=Engine(_PACKAGE, _PACKAGE, (("generic", frozenset({"simd128"})),)),
)

LEVELS = {WASM32.name: WASM32}
COMBINATIONS = ("wasm32+simd128",)
