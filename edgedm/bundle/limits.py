"""Does a manifest stay inside its own bundle? What it says of sizes and places, before anything is allocated by it."""

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence

from edgedm.bundle.manifest import GraphName, Manifest, Node, Operand, Port, Strips

MOST_VALUE_BYTES = 2**31  # of one tensor, as in a graph
MOST_MEMORY_BYTES = 2**40
MOST_TIMESTEPS = 2**20
ALIGNMENT = 64  # of a unit in memory
_BYTES = {"float32": 4, "float64": 8, "bool": 1}
_BYTES |= {f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)}


def check_limits(manifest: Manifest) -> None:
    """Raise ValueError that names the entry where a tensor has no size, an unknown dtype or leaves its memory.

    Constants have to lie in a section of the weights that their variant reads, where sections are recorded.
    """
    for name in ("image_shape", "decoded_shape", "condition_shape"):
        shape = getattr(manifest, name)
        if shape is not None:
            _bytes(name, shape, "float32")
    _check_schedule(manifest)
    for name, size in [("weights_bytes", manifest.weights_bytes), ("row_bytes", manifest.row_bytes)]:
        _check_memory(name, size)
    for graph, ports in [*manifest.inputs.items(), *manifest.outputs.items()]:
        for port in ports:
            _bytes(f"{graph}: {port.name!r}", port.shape, port.dtype)
    _check_nodes(manifest, manifest.target.name, manifest.nodes, manifest.arena_bytes)
    for other in manifest.others or ():
        _check_nodes(manifest, other.target.name, other.nodes, other.arena_bytes)


def _check_schedule(manifest: Manifest) -> None:
    first, last = manifest.trained_timesteps
    if not 0 <= first <= last < MOST_TIMESTEPS:
        raise ValueError(f"trained_timesteps: expected first and last of 0..{MOST_TIMESTEPS - 1}, got {first}, {last}")
    if manifest.schedule.steps > last + 1:
        raise ValueError(f"schedule: {manifest.schedule.steps} steps of {last + 1} timesteps")
    if manifest.null_class > manifest.classes:
        raise ValueError(f"null_class: {manifest.null_class}, but the model has {manifest.classes} classes")


def _check_nodes(manifest: Manifest, variant: str, nodes: Iterable[Node], arena_bytes: int) -> None:
    _check_memory("arena_bytes", arena_bytes)
    memory = {"arena": arena_bytes, "weights": manifest.weights_bytes}
    ports: Mapping[str, Mapping[GraphName, Sequence[Port]]] = {"input": manifest.inputs, "output": manifest.outputs}
    read = sorted((each.offset, each.offset + each.bytes) for each in manifest.sections if variant in each.variants)
    for node in nodes:
        operands = [*node.inputs, *node.outputs, *(node.scratch or ())]
        for operand in operands:
            where = f"node {node.index} of {node.graph}: {operand.name!r}"
            size = _bytes(where, operand.shape, operand.dtype)
            if operand.source == "strips":
                if node.strips is None:
                    raise ValueError(f"{where}: lies in strips, but the node is of no chain")
                if size % (node.strips.heads * node.strips.strips):
                    raise ValueError(f"{where}: {size} bytes in {node.strips.heads} x {node.strips.strips} strips")
                _check_place(where, operand, strips_bytes(size, node.strips), arena_bytes)
            elif operand.source in memory:
                _check_place(where, operand, size, memory[operand.source])
                if operand.source == "weights" and manifest.sections:
                    _check_section(f"{variant}: {where}", operand, size, read)
            elif operand.offset >= len(ports[operand.source].get(node.graph, ())):
                raise ValueError(f"{where}: {operand.source} number {operand.offset}, which the graph does not have")


def strips_bytes(size: int, strips: Strips) -> int:
    """What a tensor of `size` bytes takes of the arena if it is there in strips."""
    unit = size // (strips.heads * strips.strips)
    return strips.tasks * -(-unit // ALIGNMENT) * ALIGNMENT


def _check_place(where: str, operand: Operand, size: int, room: int) -> None:
    if operand.offset + size > room:
        raise ValueError(f"{where}: bytes {operand.offset}..{operand.offset + size} of {room} of {operand.source}")


def _check_section(where: str, operand: Operand, size: int, read: Sequence[tuple[int, int]]) -> None:
    """Nothing checks the hash of bytes elsewhere, and no copy of the weights holds them."""
    at = bisect.bisect_right(read, operand.offset, key=lambda section: section[0]) - 1
    if at < 0 or operand.offset + size > read[at][1]:
        raise ValueError(
            f"{where}: bytes {operand.offset}..{operand.offset + size} of weights lie in no section that it reads"
        )


def _check_memory(name: str, size: int) -> None:
    if size > MOST_MEMORY_BYTES:
        raise ValueError(f"{name}: {size} bytes, more than {MOST_MEMORY_BYTES}")


def _bytes(where: str, shape: Sequence[int], dtype: str) -> int:
    if dtype not in _BYTES:
        raise ValueError(f"{where}: dtype {dtype[:20]!r}, expected one of {', '.join(_BYTES)}")
    if any(axis < 1 for axis in shape):
        raise ValueError(f"{where}: shape {list(shape)}: expected axes of 1 or more")
    size = math.prod(shape) * _BYTES[dtype]
    if size > MOST_VALUE_BYTES:
        raise ValueError(f"{where}: shape {list(shape)} takes {size} bytes, more than {MOST_VALUE_BYTES}")
    return size
