"""Small hands for rewriting a graph: read constants and static shapes, add nodes, swap values, cancel transposes.

Values replaced by a rewrite keep their names, so the graphs before and after a pass can be compared value by value.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.ops import DOMAIN

MODULE = "edgedm.module"
"""Node metadata: the dotted torch module path that the node comes from."""

Array = NDArray[Any]

SHARED_BYTES = 4096
"""Initialisers up to this size are compared with new ones, so that neutral operands and shapes are stored once."""

TO_LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1)}
TO_FIRST = {3: (0, 2, 1), 4: (0, 3, 1, 2)}


@dataclass(frozen=True)
class Refusal:
    """A pattern that a pass recognised and left alone, with the reason."""

    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}"


def describe(node: ir.Node) -> str:
    """Name a node in a message: its name, operator and torch module."""
    module = node.metadata_props.get(MODULE)
    return f"node {node.name!r} ({node.op_type}{f', module {module}' if module else ''})"


def is_op(node: ir.Node | None, op_type: str) -> bool:
    """Whether `node` is this standard operator."""
    return node is not None and node.op_type == op_type and node.domain in ("", "ai.onnx")


def is_edgedm(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of these ops of the domain `edgedm`."""
    return node is not None and node.domain == DOMAIN and node.op_type in op_types


def operand(node: ir.Node, index: int) -> ir.Value:
    """Input `index` of `node`; `InvalidModelError` if it is absent."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise InvalidModelError(f"{describe(node)}: input {index} is missing")
    return value


def constant(value: ir.Value | None) -> Array | None:
    """The array of a constant: an initialiser that callers cannot override, or a Constant node; else None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def dims(value: ir.Value) -> tuple[int, ...]:
    """The static shape of `value`; `UnsupportedError` if it is unknown or symbolic."""
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        producer = value.producer()
        where = describe(producer) if producer is not None else f"input {value.name!r}"
        raise UnsupportedError(
            f"{where}: {value.name!r} has no static shape (got {value.shape}); export for one image of fixed size"
        )
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`, once; None if there are several, or if it is a graph output."""
    uses = list(value.uses())
    return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None


def ints(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An integer-list attribute."""
    attribute = node.attributes.get(name)
    return tuple(default) if attribute is None else tuple(attribute.as_ints())


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def number(node: ir.Node, name: str, default: float) -> float:
    """A float attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def transposed_by(node: ir.Node | None) -> tuple[int, ...] | None:
    """The permutation of a Transpose, else None."""
    return ints(node, "perm", ()) if node is not None and is_op(node, "Transpose") else None


class Editor:
    """Adds and replaces nodes in the main graph of one model; counts what was rewritten and what was refused."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.refusals: list[Refusal] = []
        self.rewritten: list[str] = []
        self.details: dict[str, dict[str, list[int]]] = {}
        self._names = {value.name for node in self.graph for value in node.outputs}
        self._names |= {value.name for value in self.graph.inputs} | set(self.graph.initializers)
        self._node_names = {node.name for node in self.graph}
        self._made: dict[tuple[Any, ...], list[ir.Value]] = {}
        for node in self.graph:
            if transposed_by(node) is not None:
                key = ("Transpose", "", tuple(node.inputs), repr([("perm", list(ints(node, "perm", ())))]))
                self._made[key] = list(node.outputs)
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        for value in self.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes <= SHARED_BYTES and not value.is_graph_input():
                self._constants.setdefault(_key(tensor.numpy()), value)

    def nodes(self) -> Iterator[ir.Node]:
        """The nodes of the graph as it stands now, less those that the walk's own edits remove."""
        for node in list(self.graph):
            if node.graph is not None:
                yield node

    def refuse(self, node: ir.Node, reason: str) -> None:
        """Note why a recognised pattern stays as it is."""
        self.refusals.append(Refusal(describe(node), reason))

    def constant(self, array: Array, hint: str) -> ir.Value:
        """An initialiser holding `array`; an equal one is used again, else its name starts with `hint`."""
        key = _key(array)
        if key not in self._constants:
            name = self.unique(hint)
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
            )
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        like: ir.Node,
        outputs: Sequence[tuple[str, ir.DataType, Sequence[int]]],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        shared: bool = True,
    ) -> list[ir.Value]:
        """Add a node before `like` with its metadata; `outputs` are (name hint, dtype, shape).

        If `shared`, an equal node made earlier in this run is used again, so a tensor is transposed or packed once.
        """
        attributes = dict(attributes or {})
        key = (op_type, domain, tuple(inputs), repr(sorted(attributes.items())))
        made = self._made.get(key)
        if shared and made is not None and _in_graph(made[0]):
            return made
        values = [
            ir.Value(name=self.unique(hint), type=ir.TensorType(dtype), shape=ir.Shape(shape))
            for hint, dtype, shape in outputs
        ]
        module = like.metadata_props.get(MODULE)
        node = ir.node(
            op_type,
            inputs,
            attributes,
            domain=domain,
            outputs=values,
            name=self._unique_node(f"{module}.{op_type}" if module else op_type),
            metadata_props={MODULE: module} if module is not None else None,
        )
        self.graph.insert_before(like, node)
        if shared:
            self._made[key] = values
        return values

    def permute(self, value: ir.Value, perm: Sequence[int], like: ir.Node, suffix: str) -> ir.Value:
        """`value` transposed; a transpose that undoes `value`'s own producer is not added."""
        producer = value.producer()
        before = transposed_by(producer)
        if before is not None and all(before[axis] == index for index, axis in enumerate(perm)):
            assert producer is not None
            return operand(producer, 0)
        shape = [dims(value)[axis] for axis in perm]
        dtype = value.dtype or ir.DataType.FLOAT
        return self.add("Transpose", [value], like, [(f"{value.name}{suffix}", dtype, shape)], {"perm": list(perm)})[0]

    def to_last(self, value: ir.Value, like: ir.Node) -> ir.Value:
        """`value` with channels moved from axis 1 to the last axis; rank 3 or 4."""
        return self.permute(value, TO_LAST[len(dims(value))], like, ".last")

    def to_first(self, value: ir.Value, like: ir.Node) -> ir.Value:
        """`value` with channels moved from the last axis to axis 1; rank 3 or 4."""
        return self.permute(value, TO_FIRST[len(dims(value))], like, ".first")

    def replace(self, old: ir.Value, new: ir.Value, rename: bool = True) -> None:
        """Let every user of `old`, the graph's outputs included, read `new`.

        With `rename`, `new` takes over the name of `old`: it now holds what `old` held. Without, `new` keeps its
        own name and meaning, and a graph output reads it through an Identity.
        """
        name, producer = old.name, old.producer()
        if not rename and old.is_graph_output():
            assert producer is not None
            output = (f"{name}.copy", new.dtype or ir.DataType.FLOAT, dims(new))
            (new,) = self.add("Identity", [new], producer, [output], shared=False)
            rename = True
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if rename:
            old.name = self.unique(f"{name}.replaced")
            new.name = name
        if producer is not None:
            _remove_dead(producer)

    def replace_by_last(self, old: ir.Value, new: ir.Value, like: ir.Node) -> None:
        """Let `new`, channels last, stand for `old`, channels first: turned round, or as it is behind a transpose."""
        first = self.to_first(new, like)
        self.replace(old, first)
        for reader in first.consumers():
            if transposed_by(reader) == TO_LAST.get(len(dims(first))):
                self.replace(reader.outputs[0], new)

    def finish(self) -> None:
        """Cancel transposes, drop what nothing reads, and put the nodes in order."""
        cancel_transposes(self.graph)
        model = ir.Model(self.graph, ir_version=10)
        RemoveUnusedNodesPass()(model)
        self.graph.sort()

    def unique(self, hint: str) -> str:
        """A value name that the graph does not use yet: `hint`, numbered if need be."""
        name, count = hint, 1
        while name in self._names:
            count += 1
            name = f"{hint}.{count}"
        self._names.add(name)
        return name

    def _unique_node(self, hint: str) -> str:
        name, count = hint, 1
        while name in self._node_names:
            count += 1
            name = f"{hint}.{count}"
        self._node_names.add(name)
        return name


def _key(array: Array) -> tuple[Any, ...]:
    """What equal arrays have in common: a digest, since weights are large."""
    return (array.dtype.name, array.shape, hashlib.blake2b(array.tobytes()).digest())


def _in_graph(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.graph is not None


def _remove_dead(node: ir.Node) -> None:
    """Remove `node` if nothing reads it, and then what it alone read: they must not count as readers any more."""
    pending = [node]
    while pending:
        each = pending.pop()
        if each.graph is None or any(value.is_graph_output() or value.uses() for value in each.outputs):
            continue
        makers = [value.producer() for value in each.inputs if value is not None]
        each.graph.remove(each, safe=True)
        pending.extend(maker for maker in makers if maker is not None)


def cancel_transposes(graph: ir.Graph) -> None:
    """Remove pairs of Transposes that undo each other."""
    for node in graph:
        perm = transposed_by(node)
        inner = operand(node, 0).producer() if perm is not None else None
        before = transposed_by(inner)
        if perm is None or before is None or inner is None:
            continue
        if all(before[axis] == index for index, axis in enumerate(perm)) and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(operand(inner, 0))
