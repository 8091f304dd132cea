"""What a base instruction-set level is; the file of each instruction set (x86, arm, ...) describes its own."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Emulator:
    """A program that runs another machine's static executables here.

    `cpus` are what it may imitate, the least first, each with the features that kernels ask for and it has.
    """

    program: str
    package: str  # of Debian, that holds it
    cpus: tuple[tuple[str, frozenset[str]], ...]

    def command(self, features: frozenset[str]) -> tuple[str, ...]:
        """The command before the executable: the least CPU that has all `features`, so that others are found out."""
        cpu = next(name for name, has in self.cpus if features <= has)
        return (self.program, "-cpu", cpu)

    def shown(self, features: frozenset[str]) -> str:
        """The command as a person reads it."""
        return " ".join(self.command(features))

    @property
    def is_here(self) -> bool:
        """Whether this machine has it."""
        return shutil.which(self.program) is not None

    @property
    def source(self) -> str:
        """How to get it."""
        return f"Debian's package {self.package}; scripts/tools.sh"


@dataclass(frozen=True)
class Level:
    """A base level: features that each of its machines has, those that may be added, and the tools that serve it."""

    name: str
    isa: str  # "x86", "aarch64", "arm", "riscv64" or "wasm32"
    features: frozenset[str]
    extras: Mapping[str, str] = field(hash=False)  # feature that may be added -> LLVM's name for it
    cpu: str  # LLVM's name of its plainest CPU
    triple: str  # LLVM's, for kernels
    program_triple: str  # zig's, for executables; with musl they are static
    library_triple: str  # zig's, for the shared library; a glibc version in it is the oldest that loads it
    attributes: tuple[str, ...] = ()  # LLVM's, besides those of the extras
    abi: tuple[tuple[str, str | int], ...] = ()  # what else TVM's target needs
    c_flags: tuple[str, ...] = ()  # what the C compiler needs besides those for all
    link_flags: tuple[str, ...] = ()  # in place of those for all, where its linker is another
    required: frozenset[str] = frozenset()  # extras without which there are no kernels
    implied: Mapping[str, str] = field(default_factory=dict, hash=False)  # extra -> another that it brings along
    emulator: Emulator | None = None
    system: str = "linux"  # or "android", whose shared library is another: see edgedm/android

    def complete(self, extras: frozenset[str]) -> frozenset[str]:
        """`extras` with those that they imply."""
        return extras | {self.implied[each] for each in extras if each in self.implied}


@dataclass(frozen=True)
class Core:
    """A named CPU: shorthand for a level with features, scheduled for it, with no other instructions."""

    level: str
    extras: frozenset[str]
    cpu: str  # LLVM's name
