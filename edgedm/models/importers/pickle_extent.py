"""How much a pickle's values hold, how deep they nest and what is hashed of them, told from its opcodes.

A few hundred bytes can name a tuple of the same two tuples forty times over, which takes hours to hash as the key of a
dictionary; a million nested ones end Python where it hashes them. Keys of one hash are compared each with each, and
what hash a tuple of numbers has can be chosen.
"""

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_DEEP = 1000  # torch's own reach 6; the stack of a thread holds about 100,000
MOST_IN_TUPLE = 1 << 20  # values, those of its tuples included; a tensor's arguments are about 20
MOST_LARGE = 1000  # numbers beyond 32 bits, of which any number can be chosen to have one hash
MOST_TUPLES_HASHED = 100  # a checkpoint's keys are names and small numbers
MOST_TAKEN = 1 << 24  # values in all, each counted once more by whatever holds it: a second of hashing

_GROWING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_KEYED = {"SETITEM", "SETITEMS", "DICT"}
_SETS = {"ADDITEMS", "FROZENSET"}
_TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_ORDERED = "collections OrderedDict"  # which Python 3 pickles empty, and fills
_CONTAINERS = {_ORDERED, "collections Counter", "builtins set", "__builtin__ set"}
_IN_A_NAME = 5  # the first parts of the tuple that names a storage


@dataclass
class _Value:
    """A list and the like may grow after another value took it: they are one object here too."""

    size: int
    depth: int
    made_by: str = ""  # the opcode; of a class or function, and of what it was called for, its name
    parts: list["_Value"] = field(default_factory=list)  # the first ones of a tuple


class Extent:
    """Follows one pickle's stack, as `pickletools.dis` does."""

    def __init__(self) -> None:
        self._stack: list[_Value | None] = []  # None: a mark
        self._memo: dict[int, _Value | None] = {}
        self._taken = self._large = self._hashed = 0

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Take the next opcode into account.

        ValueError where values hold, nest or hash more than any checkpoint's do, or the opcode takes what is not there.
        """
        if isinstance(argument, int) and abs(argument) >> 32:
            self._large += 1
            if self._large > MOST_LARGE:
                raise ValueError(f"it has more than {MOST_LARGE} numbers beyond 32 bits")
        try:
            self._follow(opcode, argument)
        except LookupError:
            raise ValueError(f"{opcode.name} takes a value that is not there") from None

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
        elif name == "GLOBAL":
            self._stack.append(_Value(1, 0, str(argument)))
        else:
            self._replace(opcode)

    def _replace(self, opcode: pickletools.OpcodeInfo) -> None:
        """Put one value in the place of those that `opcode` takes; one that grows stays the same."""
        name, before = opcode.name, opcode.stack_before
        marked = pickletools.markobject in before
        taken = self._take_to_mark() if marked else []  # the last comes first
        taken += [self._take() for _ in range(before.index(pickletools.markobject) if marked else len(before))]
        grown = taken.pop() if name in _GROWING else _Value(1, 0, name)
        self._check_hashed(name, taken, grown)
        if name in ("REDUCE", "NEWOBJ"):
            grown.made_by = taken[-1].made_by
        if name in _TUPLES:
            grown.parts = taken[: -_IN_A_NAME - 1 : -1]
        size = sum(each.size for each in taken)
        self._taken += size
        grown.size += size
        grown.depth = max([grown.depth, *(each.depth + 1 for each in taken)])
        if grown.depth > MOST_DEEP:
            raise ValueError(f"its values nest more than {MOST_DEEP} deep")
        if name in _TUPLES and grown.size > MOST_IN_TUPLE:
            raise ValueError(f"a tuple of it holds more than {MOST_IN_TUPLE} values, those of its tuples included")
        if self._taken > MOST_TAKEN:
            raise ValueError(f"its values hold more than {MOST_TAKEN} values, each counted once for each that holds it")
        if opcode.stack_after:
            self._stack.append(grown)

    def _check_hashed(self, name: str, taken: Sequence[_Value], grown: _Value) -> None:
        """Count the tuples that become keys; refuse the ways to hash that cannot be followed and nobody takes."""
        hashed: Sequence[_Value] = ()
        if name in _KEYED:
            hashed = taken[1::2]
        elif name in _SETS:
            hashed = taken
        elif name == "BINPERSID":
            hashed = taken[0].parts
        elif name == "BUILD" and grown.made_by in _CONTAINERS and taken[0].made_by not in ("EMPTY_DICT", "DICT"):
            raise ValueError(f"it gives {grown.made_by!r} a state that is no dictionary")
        elif name == "REDUCE" and taken[1].made_by in _CONTAINERS:
            arguments, called = taken
            plain = arguments.made_by in _TUPLES and all(each.depth < 2 for each in arguments.parts)
            if not plain or (called.made_by == _ORDERED and arguments.depth):
                raise ValueError(f"it calls {called.made_by!r} with more than numbers and text")
        self._hashed += sum(each.depth > 0 for each in hashed)
        if self._hashed > MOST_TUPLES_HASHED:
            raise ValueError(f"more than {MOST_TUPLES_HASHED} of its keys are tuples")

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
