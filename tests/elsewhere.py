"""Other machines that tests run programs of, under qemu: the least CPU that has the target's features."""

import tools

from edgedm.targets import resolve, runs_natively

TARGETS = ("aarch64", "aarch64+dotprod", "aarch64+dotprod+i8mm", "armv7+neon", "riscv64")


def need_machine(target: str) -> None:
    """Skip the test where nothing here runs the target's programs; fail it where the full suite must run."""
    resolved = resolve(target)
    if not runs_natively(resolved):
        tools.need(resolved.base.emulator.program)
