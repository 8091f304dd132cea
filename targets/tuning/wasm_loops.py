"""The inner loops of emitted WebAssembly, as LLVM writes it: what they consist of.

A loop here is what stands between `loop` and the `end_loop` that follows it, with no other loop inside.
"""

import re
from collections.abc import Sequence

_LOOP = re.compile(r"loop\b")
_VECTOR = re.compile(r"[if]\d+x\d+\.|v128\.")


def wasm_loop(assembly: str, counted: str) -> list[str]:
    """Return the mnemonics of the inner loop that has most of the instruction `counted`."""
    words = [line.partition("#")[0].strip().partition("\t")[0].rstrip() for line in assembly.splitlines()]
    opened: int | None = None
    found: list[str] = []
    for number, word in enumerate(words):
        if _LOOP.match(word):
            opened = number
        elif word == "end_loop" and opened is not None:
            body = [each for each in words[opened + 1 : number] if each and not each.endswith(":")]
            found, opened = max(found, body, key=lambda each: each.count(counted)), None
    return found


def vectors(loop: Sequence[str]) -> int:
    """How many of a loop's instructions work on vectors, loads and stores among them."""
    return sum(bool(_VECTOR.match(each)) for each in loop)
