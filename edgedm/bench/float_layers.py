"""The float parts of a network as layers of their own: their kernels' operands, and the same in ONNX and PyTorch.

Every peer gets what a network has: constant weights, activations known only at run time, its own layout (channels
first for ONNX Runtime, channels last for PyTorch's convolutions as well as ours).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgedm.targets.kernels.spec import Array

KINDS = {
    "pconv": "float32: FloatConv of 1x1 with bias",
    "attention": "float32: one head's Transpose of k, MatMul, Softmax, MatMul; HEIGHT^2 tokens of IN channels",
    "norm": "float32: GroupNorm of 32 groups",
    "normsilu": "float32: GroupNorm of 32 groups, SiLU",
    "upsample": "float32: nearest, to twice the height and width",
}
WITHOUT_PRODUCTS = ("norm", "normsilu", "upsample")
"""Kinds that move data more than they multiply: there is no limit of arithmetic to hold them against."""

_GROUPS, _EPSILON, _FACTOR = 32, 1e-5, 2


@dataclass(frozen=True)
class Call:
    """One op of ours: run-time operands by number (0 and up: the inputs; -1: the result of the call before)."""

    op: str
    operands: tuple[int, ...]
    constants: tuple[Array, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Form:
    """A layer: its inputs, channels last, and the calls of ours that it consists of."""

    inputs: tuple[Array, ...]
    calls: tuple[Call, ...]


def form(kind: str, channels: int, out_channels: int, height: int) -> Form:
    """The layer of `kind` with seeded operands."""
    rng = np.random.default_rng(0)

    def rows(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    if kind == "attention":
        tokens = height**2
        turn = Call("Transpose", (1,), (), {"perm": [0, 1, 3, 2]})
        calls = (turn, Call("MatMul", (0, -1), (), {}), Call("Softmax", (-1,), (), {}), Call("MatMul", (-1, 2), (), {}))
        return Form(tuple(rows(1, 1, tokens, channels) for _ in range(3)), calls)
    x = rows(1, height, height, channels)
    if kind == "pconv":
        constants = rows(out_channels, channels, 1, 1), rows(out_channels)
        return Form((x,), (Call("FloatConv", (0,), constants, {"strides": [1, 1], "pads": [0] * 4}),))
    if kind == "upsample":
        return Form((x,), (Call("UpsampleNearest", (0,), (), {"factor": _FACTOR}),))
    op = "GroupNormSilu" if kind == "normsilu" else "GroupNorm"
    return Form((x,), (Call(op, (0,), (rows(channels), rows(channels)), {"groups": _GROUPS, "epsilon": _EPSILON}),))


def in_onnx(kind: str, layer: Form) -> tuple[dict[str, Array], list[Any], dict[str, Array]]:
    """(inputs, nodes that make `y` of them, constants), channels first."""
    from onnx import helper

    node = helper.make_node
    constants = dict(zip(("w", "b"), layer.calls[0].constants, strict=False))
    if kind == "attention":
        nodes = [
            node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
            node("MatMul", ["q", "kt"], ["s"]),
            node("Softmax", ["s"], ["p"], axis=-1),
            node("MatMul", ["p", "v"], ["y"]),
        ]
        return dict(zip("qkv", layer.inputs, strict=True)), nodes, {}
    x = {"x": np.ascontiguousarray(layer.inputs[0].transpose(0, 3, 1, 2))}
    if kind == "pconv":
        return x, [node("Conv", ["x", "w", "b"], ["y"])], constants
    if kind == "upsample":
        scales = np.array([1, 1, _FACTOR, _FACTOR], np.float32)
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return x, [node("Resize", ["x", "", "scales"], ["y"], **how)], {"scales": scales}
    silu = kind == "normsilu"
    norm = node("GroupNormalization", ["x", "w", "b"], ["n" if silu else "y"], num_groups=_GROUPS, epsilon=_EPSILON)
    return x, [norm, *([node("Sigmoid", ["n"], ["g"]), node("Mul", ["n", "g"], ["y"])] if silu else [])], constants


def in_torch(kind: str, layer: Form) -> Callable[[], object]:
    """A call of PyTorch's functions."""
    import torch
    from torch.nn import functional

    inputs = [torch.from_numpy(each) for each in layer.inputs]
    constants = [torch.from_numpy(each) for each in layer.calls[0].constants]
    if kind == "attention":
        q, k, v = inputs
        return lambda: functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    x = inputs[0].permute(0, 3, 1, 2)  # a channels-last tensor
    if kind == "upsample":
        return lambda: functional.interpolate(x, scale_factor=_FACTOR, mode="nearest")
    weight, bias = constants
    if kind == "pconv":
        return lambda: functional.conv2d(x, weight, bias)

    def norm() -> torch.Tensor:
        return functional.group_norm(x, _GROUPS, weight, bias, _EPSILON)

    return norm if kind == "norm" else lambda: functional.silu(norm())


def macs(kind: str, channels: int, out_channels: int, height: int) -> int:
    """Multiply-accumulates; none of what has no products."""
    pixels = height**2
    return {"pconv": pixels * channels * out_channels, "attention": 2 * pixels**2 * channels}.get(kind, 0)


def complaint(kind: str, sizes: Sequence[int]) -> str | None:
    """Why there is no such layer, or None."""
    channels, out_channels, _ = sizes
    if kind != "pconv" and channels != out_channels:
        return "IN and OUT must be equal"
    if kind.startswith("norm") and channels % _GROUPS:
        return f"IN must be a multiple of {_GROUPS}, the groups"
    return None
