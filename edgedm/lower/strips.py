"""Chains of calls that run strip by strip, so that attention's scores never lie in memory whole.

    s = MatMul(q, k);  p = Softmax(s);  y = MatMul(p, v)                    s, p f32[1, H, M, N]
    s = QuantMatMul(q, ...);  p = Softmax(s);  c = QuantizeHeads(p, ...);  y = QuantMatMul(c, ..., v, ...)

Scores grow with the square of the pixels: 59 MB for 14 heads of 1,024. Call by call they would go to memory and come
back, three times. A unit of a chain is some rows of one head. All calls run on one unit before the next begins, by
kernels for that shape, and what lies between them has room for one unit a task, which stays in a core's cache. Keys and
values are laid out once for the units of a head. Each row is computed as before, in the same order, so all bits are the
same.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgedm.errors import UnsupportedError
from edgedm.lower.importer import KernelCall, opaque
from edgedm.lower.memory import ALIGNMENT
from edgedm.lower.tensors import Buffer, Call, Chain, Part, Tensor
from edgedm.targets.kernels.select import select
from edgedm.targets.kernels.spec import Kernel, TensorSpec
from edgedm.targets.target import Target

LEAST_BYTES = 1 << 20
"""Of scores: smaller ones stay in a cache as they are."""

STRIP_BYTES = 1 << 17
"""Of scores in a unit, at most: with the probabilities and codes made of them a quarter of a megabyte."""

_MOST_TASKS, _MOST_ARGUMENTS = 8, 16  # the same in runtime/templates/chains.c, whose chains have 4 calls at the most
_FEWEST_ROWS = 8  # of a unit: every call reads the right operand whole

_OPERANDS = {
    "MatMul": (Part.ROWS, Part.HEAD),
    "QuantMatMul": (Part.ROWS, *5 * (Part.HEAD,)),
    "Softmax": (Part.ROWS,),
    "QuantizeHeads": (Part.ROWS, Part.HEAD, Part.HEAD),
}
"""Op -> which part of each operand makes a unit of its result."""
_PRODUCTS = ("MatMul", "QuantMatMul")
_BETWEEN = (("Softmax",), ("Softmax", "QuantizeHeads"))
"""What may stand between the two products."""


def cut_strips(
    calls: Sequence[Call], kept: Sequence[Tensor], target: Target
) -> tuple[list[Call], list[Chain], Mapping[str, Any]]:
    """Return the calls, those in chains on kernels of units; the chains; and these kernels' functions by name.

    `kept` are tensors that something else than the calls reads. What lies between the calls of a chain gets the place
    "strips", with room for a unit a task. In place, as buffers are.
    """
    readers = Counter(tensor.buffer for call in calls for tensor in call.inputs)
    readers.update(tensor.buffer for tensor in kept)
    cut, chains = list(calls), list[Chain]()
    functions: dict[str, Any] = {}
    for first, count in _runs(calls, readers):
        chain = _units(first, count, calls[first].outputs[0].shape)
        members = calls[first : first + count]
        kernels = [_kernel(call, chain, target) for call in members] if chain and _fits(members, chain) else []
        if chain is None or not kernels or not all(kernels):
            continue
        for number, (call, kernel) in enumerate(zip(members, kernels, strict=True), start=first):
            assert kernel is not None
            made = kernel.apart() if kernel.apart else (kernel.function,)
            names = [str(each.attrs["global_symbol"]) for each in made]
            functions.update(zip(names, map(opaque, made), strict=True))
            cut[number] = _on_units(call, kernel, names, chain)
        for call in members[:-1]:
            _shrink(call.outputs[0], chain)
        chains.append(chain)
    return cut, chains, functions


def _runs(calls: Sequence[Call], readers: Mapping[Buffer, int]) -> Iterator[tuple[int, int]]:
    """First call and number of calls of what could be chains."""
    first = 0
    while first < len(calls):
        count = _length(calls, first, readers) if _op(calls[first]) in _PRODUCTS else 0
        if count:
            yield first, count
        first += max(count, 1)


def _length(calls: Sequence[Call], first: int, readers: Mapping[Buffer, int]) -> int:
    """How many calls from a product to the next are attention, each the only reader of what the one before made."""
    for between in _BETWEEN:
        members = calls[first : first + len(between) + 2]
        if [_op(call) for call in members[1:-1]] == list(between) and _op(members[-1]) in _PRODUCTS:
            made = [call.outputs[0] for call in members[:-1]]
            alone = all(each.buffer.place == "arena" and readers[each.buffer] == 1 for each in made)
            handed = all(call.inputs[0] == each for call, each in zip(members[1:], made, strict=True))
            return len(members) if alone and handed else 0
    return 0


def _op(call: Call) -> str:
    return call.origin.op if call.origin is not None else ""


def _units(first: int, count: int, shape: Sequence[int]) -> Chain | None:
    """Units of scores f32[1, H, M, N]; None where cutting them up would not pay."""
    if len(shape) != 4 or shape[0] != 1:
        return None
    _, heads, m, n = shape
    if heads * m * n * 4 < LEAST_BYTES:
        return None
    rows = max((rows for rows in range(1, m + 1) if m % rows == 0 and rows * n * 4 <= STRIP_BYTES), default=1)
    if rows < _FEWEST_ROWS or (heads == 1 and rows == m):
        return None
    return Chain(first, count, heads, m // rows, min(_MOST_TASKS, heads * (m // rows)))


def _fits(calls: Sequence[Call], chain: Chain) -> bool:
    """Whether every operand comes apart, and its pieces begin where kernels want them. Single numbers may anywhere."""
    for call in calls:
        for tensor, part in zip((*call.inputs, *call.outputs), _parts(call), strict=True):
            if len(tensor.shape) not in (1, 4) or tensor.shape[-3:][0] != chain.heads:  # [H] or [1, H, T, D]
                return False
            pieces = chain.heads * (chain.strips if part is Part.ROWS else 1)
            if tensor.shape != (chain.heads,) and tensor.nbytes % (pieces * ALIGNMENT):
                return False
    return True


def _parts(call: Call) -> tuple[Part, ...]:
    assert call.origin is not None
    operands = _OPERANDS[call.origin.op]
    return (*(operands[number] for number in call.origin.kernel.kept), Part.ROWS)


def _kernel(call: Call, chain: Chain, target: Target) -> Kernel | None:
    """The kernel of one unit; None if there is none that reads and makes the same."""
    origin = call.origin
    assert isinstance(origin, KernelCall)
    specs = [_spec(spec, part, chain) for spec, part in zip(origin.operands, _OPERANDS[origin.op], strict=True)]
    try:
        kernel = select(origin.op, specs, origin.attributes, target)
    except UnsupportedError:
        return None
    same = kernel.kept == origin.kernel.kept and not kernel.pack and len(kernel.outputs) == 1
    return kernel if same and len(kernel.kept) + 1 + len(kernel.scratch) <= _MOST_ARGUMENTS else None


def _spec(spec: TensorSpec, part: Part, chain: Chain) -> TensorSpec:
    if len(spec.shape) == 1:
        return TensorSpec((1,), spec.dtype)
    rows = spec.shape[2] // (chain.strips if part is Part.ROWS else 1)
    return TensorSpec((1, 1, rows, spec.shape[3]), spec.dtype)


def _on_units(call: Call, kernel: Kernel, functions: Sequence[str], chain: Chain) -> Call:
    assert call.origin is not None
    scratch = []
    for spec in kernel.scratch:
        elements = -(-spec.size // ALIGNMENT) * ALIGNMENT  # each task's begins where kernels want it
        tensor = TensorSpec((chain.tasks, elements), spec.dtype)
        scratch.append(Tensor(Buffer("arena", tensor.nbytes), tensor.shape, tensor.dtype))
    whole = replace(kernel, macs=call.origin.kernel.macs)
    return Call(
        functions[-1],
        call.inputs,
        call.outputs,
        tuple(scratch),
        replace(call.origin, kernel=whole),
        (*_parts(call), *len(scratch) * (Part.TASK,)),
        before=functions[0] if len(functions) > 1 else "",
    )


def _shrink(between: Tensor, chain: Chain) -> None:
    unit = between.nbytes // (chain.heads * chain.strips)
    between.buffer.place = "strips"
    between.buffer.size = chain.tasks * -(-unit // ALIGNMENT) * ALIGNMENT
