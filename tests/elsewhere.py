"""Other machines that tests run programs of, under qemu, as the least CPU that has their features, or wasmtime."""

import tools

from edgedm.targets import resolve, runs_natively

TARGETS = ("aarch64", "aarch64+dotprod", "aarch64+dotprod+i8mm", "armv7+neon", "riscv64", "wasm32+simd128")
MOST_BYTES = 500_000  # of a program of one variant, without its weights


def need_machine(target: str) -> None:
    """Skip the test where nothing here runs the target's programs; fail it where the full suite must run."""
    resolved = resolve(target)
    if not runs_natively(resolved):
        tools.need_emulator(resolved)
