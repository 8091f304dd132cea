"""The inner loops of emitted AArch64 assembly: what they consist of, and llvm-mca's estimate of their cycles.

A loop here is a block that ends with a branch to its own label. It counts what is there: spilled registers, moves and
addresses as well as the work.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from edgedm.errors import ToolchainError

_LABEL = re.compile(r"^(\.LBB\w+):")
_BRANCH = re.compile(r"^(?:b\.?\w*|cbn?z|tbn?z)\s.*?(\.LBB\w+)$")
_MEMORY = re.compile(r"^(?:ld|st)")
_VECTOR = re.compile(r"\bv\d+\.")
_STACK = re.compile(r"\[sp\b")
_CYCLES = re.compile(r"^Total Cycles:\s+(\d+)", re.MULTILINE)
_ITERATIONS = 200
_NEWEST, _OLDEST = 30, 19  # versions of llvm-mca that are looked for: older ones take other cores for Neoverses
_VERSION = re.compile(r"LLVM version (\d+)")


@dataclass(frozen=True)
class Loop:
    """A loop's instructions, its branch last."""

    instructions: tuple[str, ...]

    def count(self, mnemonic: str) -> int:
        """How many instructions fully match a regular expression."""
        return sum(bool(re.fullmatch(mnemonic, each.split()[0])) for each in self.instructions)

    @property
    def vector(self) -> int:
        """Instructions on vector registers, loads and stores aside."""
        return sum(bool(_VECTOR.search(each)) and not _MEMORY.match(each) for each in self.instructions)

    @property
    def memory(self) -> int:
        """Loads and stores; a pair is one."""
        return sum(bool(_MEMORY.match(each)) for each in self.instructions)

    @property
    def stack(self) -> int:
        """Loads and stores of spilled registers."""
        return sum(bool(_STACK.search(each)) for each in self.instructions)


def loops(assembly: str) -> list[Loop]:
    """All loops of a function's assembly, in its order."""
    found: list[Loop] = []
    label, body = None, list[str]()
    for line in assembly.splitlines():
        if start := _LABEL.match(line):
            label, body = start[1], []
        elif line.startswith("\t") and not line.startswith("\t."):
            body.append(re.sub(r"\s+", " ", line.partition("//")[0]).strip())
            branch = _BRANCH.match(body[-1])
            if label and branch and branch[1] == label:
                found.append(Loop(tuple(body)))
                label = None
    return found


def inner_loop(assembly: str, mnemonic: str) -> Loop:
    """The loop that has most instructions that match `mnemonic`."""
    return max(loops(assembly), key=lambda loop: loop.count(mnemonic))


def find_mca() -> str:
    """The newest llvm-mca that is installed, by name; ToolchainError if there is none of version 19 or newer."""
    for name in (f"llvm-mca-{version}" for version in range(_NEWEST, _OLDEST - 1, -1)):
        if shutil.which(name):
            return name
    if shutil.which("llvm-mca"):
        said = subprocess.run(["llvm-mca", "--version"], capture_output=True, text=True, check=False).stdout
        version = _VERSION.search(said)
        if version and int(version[1]) >= _OLDEST:
            return "llvm-mca"
    raise ToolchainError(
        f"llvm-mca of version {_OLDEST} or newer is missing: install Debian's package llvm-{_OLDEST} for estimates of "
        "cycles"
    )


def cycles(instructions: Sequence[str], cpu: str, mca: str) -> float:
    """llvm-mca's estimate of the cycles that a round of a loop takes on `cpu`, everything in its first-level cache."""
    # a branch back to its own label: llvm-mca repeats the block anyway
    lines = [re.sub(r"\.L\w+$", "again", each) for each in instructions]
    command = [mca, "-mtriple=aarch64", f"-mcpu={cpu}", "-mattr=+dotprod,+i8mm", f"-iterations={_ITERATIONS}"]
    text = "again:\n" + "\n".join(lines) + "\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    total = _CYCLES.search(done.stdout)
    if done.returncode or total is None:
        raise ToolchainError(f"{mca} -mcpu={cpu} failed: {done.stderr.strip()[-500:]}")
    return int(total[1]) / _ITERATIONS
