"""A thin layer over TVM's IR builder: kernels are Python functions that emit TIR while they run.

Python loops unroll, Python lists hold registers' worth of expressions, and `loop`/`parallel` emit loops. Buffers
are flat or two-dimensional views; `load` and `store` move `lanes` consecutive elements.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from edgedm.targets.kernels.spec import TensorSpec

Expr = Any
Buffer = Any

FEWEST_UNITS = 8  # of a parallel loop, where there is work for them: shares of 8, 4 or 2 threads are equal


def build(name: str, parameters: Sequence[tuple[str, TensorSpec]], body: Callable[..., None]) -> Any:
    """Return the PrimFunc `name` whose body is what `body(*flat buffers)` emits."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        arguments = [T.arg(label, T.buffer(spec.shape, spec.dtype)) for label, spec in parameters]
        with block():
            body(*(view(each, (math.prod(each.shape),)) for each in arguments))
    return builder.get()


@contextlib.contextmanager
def block() -> Iterator[None]:
    """Open a scope that owns the `local` buffers allocated in it."""
    with T.sblock("block"):
        T.reads()
        T.writes()
        yield


def view(buffer: Buffer, shape: tuple[int, ...], dtype: str | None = None) -> Buffer:
    """Return the same memory as another shape (and dtype)."""
    return T.decl_buffer(shape, dtype or str(buffer.dtype), data=buffer.data)


def local(size: int, dtype: str) -> Buffer:
    """Allocate `size` elements on the stack; with constant indices they become registers.

    From 1024 bytes on TVM takes them from the runtime, each time round: see `Registers`. It does that at once with
    any other scope.
    """
    return T.sblock_alloc_buffer((size,), dtype, scope="global")


class Registers:
    """`count` vectors of `lanes`, by number; each is a buffer of its own, small enough for the stack."""

    def __init__(self, count: int, lanes: int, dtype: str, zero: bool = True) -> None:
        """`zero` clears them."""
        self._vectors = [local(lanes, dtype) for _ in range(count)]
        self._lanes, self._dtype = lanes, dtype
        if zero:
            self.clear()

    def clear(self) -> None:
        """Set all to zero."""
        for number in range(len(self._vectors)):
            self[number] = const(0, self._dtype, self._lanes)

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, number: int) -> Expr:
        return load(self._vectors[number], 0, self._lanes)

    def __setitem__(self, number: int, value: Expr) -> None:
        store(self._vectors[number], value, 0, self._lanes)


def loop(extent: Expr, start: Expr = 0) -> Any:
    """Emit a serial loop over start..start+extent-1; yields its variable."""
    return T.serial(start, start + extent)


@contextlib.contextmanager
def parallel(extent: int, worthwhile: bool = True) -> Iterator[Expr]:
    """Emit a loop whose iterations run on all threads, or a serial one where that would not pay."""
    each = T.parallel(0, extent) if worthwhile and extent > 1 else T.serial(0, extent)
    with each as index, block():  # a thread owns its local buffers
        yield index


def share(part: Expr, parts: int, extent: int) -> Any:
    """Emit the loop over what falls to `part` of `parts` nearly equal shares of 0..extent-1."""
    start = let(part * extent // parts)
    return loop((part + 1) * extent // parts - start, start)


def load(buffer: Buffer, index: Expr, lanes: int = 1) -> Expr:
    """Load `lanes` consecutive elements of a flat buffer."""
    return buffer[index] if lanes == 1 else buffer[T.ramp(index, 1, lanes)]


def store(buffer: Buffer, value: Expr, index: Expr, lanes: int = 1) -> None:
    """Store `lanes` consecutive elements of a flat buffer."""
    T.buffer_store(buffer, value, [index if lanes == 1 else T.ramp(index, 1, lanes)])


def let(value: Expr) -> Expr:
    """Name a value: a load, or little more.

    TVM's simplifier writes arithmetic wherever its name stands, which grows exponentially in chains: see `hold`.
    """
    return T.Bind(value)


def hold(value: Expr, lanes: int) -> Expr:
    """Evaluate once, through a local buffer that LLVM makes a register: for links in a chain of arithmetic."""
    held = local(lanes, str(value.ty.dtype).rpartition("x")[0] if lanes > 1 else str(value.ty.dtype))
    store(held, value, 0, lanes)
    return load(held, 0, lanes)


def splat(value: Expr, lanes: int) -> Expr:
    """Repeat a scalar over a vector."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def const(value: float, dtype: str, lanes: int = 1) -> Expr:
    """Return a constant, repeated over `lanes`."""
    return splat(tirx.const(value, dtype), lanes)


def cast(value: Expr, dtype: str, lanes: int = 1) -> Expr:
    """Convert to `dtype`."""
    return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def reinterpret(value: Expr, dtype: str) -> Expr:
    """Read the same bits as `dtype` (with its lanes, `int8x64`)."""
    return T.reinterpret(dtype, value)


def intrinsic(dtype: str, name: str, *args: Expr) -> Expr:
    """Call a pure LLVM intrinsic."""
    return T.call_llvm_pure_intrin(dtype, name, *args)


def fma(a: Expr, b: Expr, c: Expr, lanes: int) -> Expr:
    """a * b + c of float32 lanes, rounded once; for targets that have it as an instruction."""
    return intrinsic("float32" if lanes == 1 else f"float32x{lanes}", "llvm.fma", a, b, c)


def where(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Lane-wise selection; both sides are evaluated."""
    return tirx.Select(condition, yes, no)


def branch(condition: Expr, yes: Callable[[], None], no: Callable[[], None] | None = None) -> None:
    """Emit `yes()` under a condition and `no()` under its opposite."""
    with T.If(condition):
        with T.Then():
            yes()
        if no is not None:
            with T.Else():
                no()


def lane_numbers(lanes: int, dtype: str) -> Expr:
    """Return the constant vector 0, 1, 2, ... (`lanes` must fit `dtype`)."""
    return T.ramp(tirx.const(0, dtype), tirx.const(1, dtype), lanes)


def permute(vector: Expr, indices: Sequence[int]) -> Expr:
    """Return the lanes of `vector` at constant `indices`."""
    return tirx.Shuffle([vector], list(indices))


def repeat(vector: Expr, size: int, lanes: int) -> Expr:
    """Repeat a vector of `size` lanes until there are `lanes`."""
    return vector if lanes == size else tirx.Shuffle([vector] * (lanes // size), list(range(lanes)))


def mask_bits(condition: Expr, lanes: int) -> Expr:
    """Return a lane-wise condition as an unsigned integer of `lanes` bits, lane 0 lowest."""
    # `reinterpret` refuses because TVM counts a byte a boolean; LLVM's vector has one bit a lane.
    return tirx.call_intrin(f"uint{lanes}", "tirx.reinterpret", condition)


def in_lanes(count: int, lanes: int, emit: Callable[[Expr, int], None]) -> None:
    """Emit `emit(start, lanes)` over `count` elements: whole vectors, then single ones."""
    whole = count // lanes if lanes > 1 else 0
    if whole == 1:
        emit(0, lanes)
    elif whole:
        with loop(whole) as index:
            emit(index * lanes, lanes)
    if count - whole * lanes:
        with loop(count - whole * lanes, whole * lanes) as at:
            emit(at, 1)


def sum_lanes(vector: Expr, lanes: int) -> Expr:
    """Add up the lanes: halves onto halves, a fixed order."""
    return _fold(vector, lanes, lambda low, high: low + high)


def max_lanes(vector: Expr, lanes: int) -> Expr:
    """Return the largest lane."""
    return _fold(vector, lanes, tirx.max)


def _fold(vector: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    vector = hold(vector, lanes)
    while lanes > 1:
        lanes //= 2
        vector = hold(combine(permute(vector, range(lanes)), permute(vector, range(lanes, 2 * lanes))), lanes)
    return vector


def byte_shuffle(table: Expr, indices: Expr, lanes: int) -> Expr:
    """In each 16 bytes: lane i is table[indices[i] & 15], or 0 where indices[i] has its high bit set; int8 lanes."""
    return intrinsic(f"int8x{lanes}", _BYTE_SHUFFLE[lanes], table, indices)


def sum_bytes(bytes_: Expr, size: int) -> Expr:
    """Add up each 8 of `size` unsigned bytes (int8 lanes): int64 lanes, a lane for 8 bytes."""
    return intrinsic(f"int64x{size // 8}", _SUM_BYTES[size], bytes_, const(0, "int8", size))


_SUM_BYTES = {16: "llvm.x86.sse2.psad.bw", 32: "llvm.x86.avx2.psad.bw", 64: "llvm.x86.avx512.psad.bw.512"}
_BYTE_SHUFFLE = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}
