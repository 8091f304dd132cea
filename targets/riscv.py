"""64-bit RISC-V: the general-purpose instructions that every Linux board has (RV64GC), no vectors."""

from edgedm.targets.level import Emulator, Level

RISCV64 = Level(
    name="riscv64",
    isa="riscv64",
    features=frozenset(),
    extras={},
    cpu="generic-rv64",
    triple="riscv64-unknown-linux-gnu",
    attributes=("+m", "+a", "+f", "+d", "+c"),
    abi=(("mabi", "lp64d"),),
    program_triple="riscv64-linux-musl",
    library_triple="riscv64-linux-gnu.2.28",
    emulator=Emulator("qemu-riscv64-static", "qemu-user-static", (("rv64", frozenset()),)),
)

LEVELS = {RISCV64.name: RISCV64}
COMBINATIONS = ("riscv64",)
