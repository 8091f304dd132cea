"""The bound of a step: what this machine needs at least for a bundle's arithmetic and for its float traffic.

    bound(call) = macs(call) / peak(kind of arithmetic) + bytes(call) / bandwidth(footprint of the call)

The first term is for calls with multiply-accumulates (those of the kernel's algorithm: see `multiplications`), the
second for those that only move data and must: norms, softmax and carried state, at the rate of the cache that holds
them, which for attention in strips is a near one. Everything else that a call does
(packing, epilogues, resizing, time embeddings) has no allowance: it counts against the share that the call reaches. The
bound of a step is the sum over its calls.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgedm.bundle import Manifest, Node, Operand
from edgedm.errors import InvalidModelError
from edgedm.targets.kernels import winograd

ALLOWED = 1.4
"""A step should take at most this many times its bound."""

XOR_POPCOUNT, BYTE_SHUFFLE, INT8_DOT, FMA = "xor_popcount", "byte_shuffle", "int8_dot", "fma"
ARITHMETIC = (XOR_POPCOUNT, BYTE_SHUFFLE, INT8_DOT, FMA)

_BY_FAMILY = {"bitserial": XOR_POPCOUNT, "lookup": BYTE_SHUFFLE, "dot": INT8_DOT, "float-conv": FMA}
_BY_OP = {
    "BinaryConv": XOR_POPCOUNT,
    "BinaryGemm": XOR_POPCOUNT,
    "BinaryWeightConv": BYTE_SHUFFLE,
    "BinaryWeightGemm": BYTE_SHUFFLE,
    "QuantConv": INT8_DOT,
    "QuantGemm": INT8_DOT,
    "QuantMatMul": INT8_DOT,
    "FloatConv": FMA,
    "MatMul": FMA,
}
_WIDTHS = re.compile(r" (\d+)x(\d+)\b")  # of codes and weights, in a family's name
_STREAMING = ("GroupNorm", "Softmax")  # how the names of ops begin whose traffic is necessary


@dataclass(frozen=True)
class Need:
    """What one kernel call needs: `macs` of one kind of arithmetic ("" for none) and `streamed` bytes.

    `moved` are all bytes of its operands that are no constants, whether they are allowed for or not.
    """

    node: Node
    kind: str
    macs: int
    moved: int
    streamed: int

    def seconds(self, peaks: Mapping[str, float], bandwidth: Callable[[int], float]) -> float:
        """The bound, from `peaks` (multiply-accumulates a second) and `bandwidth(footprint)` (bytes a second)."""
        arithmetic = self.macs / peaks[self.kind] if self.macs else 0.0
        return arithmetic + (self.streamed / bandwidth(self.footprint) if self.streamed else 0.0)

    @property
    def footprint(self) -> int:
        """The streamed bytes that are there at one time: those of a unit where the call runs strip by strip."""
        strips = self.node.strips
        return self.streamed // (strips.heads * strips.strips) if strips else self.streamed


def step_needs(manifest: Manifest) -> list[Need]:
    """What every kernel call of the step graph needs, in order."""
    states = [
        {index for index, port in enumerate(ports["step"]) if port.role == "state"}
        for ports in (manifest.inputs, manifest.outputs)
    ]
    return [_need(node, *states) for node in manifest.nodes if node.graph == "step"]


def arithmetic(node: Node) -> str:
    """The kind of arithmetic of a call with multiply-accumulates: by its kernel family, else by its op."""
    family = node.family.partition(" ")[0]
    for beginning, kind in _BY_FAMILY.items():
        if family.startswith(beginning):
            return kind
    if node.op not in _BY_OP:
        raise InvalidModelError(
            f"call {node.index} ({node.op}, module {node.module!r}, family {node.family!r}): it has {node.macs} "
            f"multiply-accumulates of no known kind; kinds are {', '.join(ARITHMETIC)}"
        )
    return _BY_OP[node.op]


def multiplications(node: Node) -> int:
    """The products that the kernel's algorithm takes: Winograd's F(2x2, 3x3) has 16 where the convolution has 36.

    Look-ups go over all products once for each plane of weights, counts of bits for each pair of planes.
    """
    if node.family.startswith("winograd"):
        return int(node.macs * winograd.PRODUCTS)
    widths = _WIDTHS.search(node.family)
    if not widths or not node.family.startswith(("lookup", "bitserial-planes")):
        return node.macs
    bits, weight_bits = int(widths[1]), int(widths[2])
    return node.macs * weight_bits * (1 if node.family.startswith("lookup") else bits)


def nbytes(operand: Operand) -> int:
    """Size of a kernel's operand."""
    return int(np.prod(operand.shape, dtype=np.int64)) * np.dtype(operand.dtype).itemsize


def _need(node: Node, state_inputs: set[int], state_outputs: set[int]) -> Need:
    moved = sum(nbytes(each) for each in (*node.inputs, *node.outputs) if each.source != "weights")
    carried = _ports(node.inputs, "input", state_inputs) or _ports(node.outputs, "output", state_outputs)
    must = not node.macs and (node.op.startswith(_STREAMING) or carried)
    return Need(node, arithmetic(node) if node.macs else "", multiplications(node), moved, moved if must else 0)


def _ports(operands: Sequence[Operand], source: str, numbers: set[int]) -> bool:
    return any(each.source == source and each.offset in numbers for each in operands)
