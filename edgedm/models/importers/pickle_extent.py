"""How much a pickle's values hold and how deep they nest, told from its opcodes.

A few hundred bytes can name a tuple of the same two tuples forty times over, which takes hours to hash as the key of a
dictionary; a million nested ones end Python where it hashes them; and keys of one hash are compared each with each.
"""

import pickletools
from dataclasses import dataclass
from typing import Any

MOST_DEEP = 1000  # torch's own reach 6; the stack of a thread holds about 100,000
MOST_IN_TUPLE = 1 << 20  # values, those of its tuples included; a tensor's arguments are about 20
MOST_CHOSEN = (
    1000  # numbers beyond 32 bits and floats in tuples: any number can be chosen so that the keys have one hash
)
MOST_TAKEN = 1 << 24  # values in all, each counted once more by whatever holds it: a second of hashing

_GROWING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_FLOATS = {"FLOAT", "BINFLOAT"}


@dataclass
class _Value:
    """A list and the like may grow after another value took it: they are one object here too."""

    size: int
    depth: int
    is_float: bool = False


class Extent:
    """Follows one pickle's stack, as `pickletools.dis` does."""

    def __init__(self) -> None:
        self._stack: list[_Value | None] = []  # None: a mark
        self._memo: dict[int, _Value | None] = {}
        self._taken = self._chosen = 0

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Take the next opcode into account.

        ValueError where values hold or nest more than any checkpoint's do, or the opcode takes what is not there.
        """
        self._chosen += isinstance(argument, int) and abs(argument) >> 32 > 0
        try:
            self._follow(opcode, argument)
        except LookupError:
            raise ValueError(f"{opcode.name} takes a value that is not there") from None
        if self._chosen > MOST_CHOSEN:
            raise ValueError(f"it has more than {MOST_CHOSEN} numbers beyond 32 bits and floats in tuples")

    def _follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[int(argument)] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[int(argument)])
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name == "MARK":
            self._stack.append(None)
        elif name in ("POP", "STOP"):
            self._stack.pop()
        else:
            self._replace(opcode)

    def _replace(self, opcode: pickletools.OpcodeInfo) -> None:
        """Put one value in the place of those that `opcode` takes; one that grows stays the same."""
        before = opcode.stack_before
        marked = pickletools.markobject in before
        taken = self._take_to_mark() if marked else []
        taken += [self._take() for _ in range(before.index(pickletools.markobject) if marked else len(before))]
        grown = taken.pop() if opcode.name in _GROWING else _Value(1, 0, opcode.name in _FLOATS)
        size = sum(each.size for each in taken)
        self._taken += size
        grown.size += size
        grown.depth = max([grown.depth, *(each.depth + 1 for each in taken)])
        if grown.depth > MOST_DEEP:
            raise ValueError(f"its values nest more than {MOST_DEEP} deep")
        if opcode.name.startswith("TUPLE"):
            self._chosen += sum(each.is_float for each in taken)
            if grown.size > MOST_IN_TUPLE:
                raise ValueError(f"a tuple of it holds more than {MOST_IN_TUPLE} values, those of its tuples included")
        if self._taken > MOST_TAKEN:
            raise ValueError(f"its values hold more than {MOST_TAKEN} values, each counted once for each that holds it")
        if opcode.stack_after:
            self._stack.append(grown)

    def _take_to_mark(self) -> list[_Value]:
        taken = []
        while (value := self._stack.pop()) is not None:
            taken.append(value)
        return taken

    def _take(self) -> _Value:
        value = self._stack.pop()
        if value is None:
            raise ValueError("a mark where a value was expected")
        return value
