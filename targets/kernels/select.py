"""From an op, its operands and a target to a kernel: the only entry that lowering needs.

An array among the operands is a constant in its ONNX layout; a `TensorSpec` is a value known at run time.
Packed bits may be given as uint8[..., Cb] or uint64[..., Cb / 8]. Operands follow the ONNX functions of
`edgedm.ops`, besides MatMul, Softmax (last axis) and Transpose (last two axes), which are ONNX's own.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.targets.kernels import families
from edgedm.targets.kernels.builder import build
from edgedm.targets.kernels.draft import Body, Draft
from edgedm.targets.kernels.epilogue import UNIFORM_TERMS
from edgedm.targets.kernels.spec import Array, Kernel, Operand, Request, TensorSpec, words
from edgedm.targets.target import Target

_INPUTS: Mapping[str, tuple[str, ...]] = {
    "PackBits": ("x", "threshold"),
    "PackBitsMeanAbs": ("x", "threshold"),
    "QuantizeCodes": ("x", "step"),
    "BinaryConv": ("bits", "weight", "multiplier", "pixel_scale", "addend", "residual", "residual_scale"),
    "BinaryGemm": ("bits", "weight", "multiplier", "addend", "residual", "residual_scale"),
    "BinaryWeightConv": ("codes", "weight", "multiplier", "addend", "residual", "residual_scale"),
    "BinaryWeightGemm": ("codes", "weight", "multiplier", "addend", "residual", "residual_scale"),
    "GroupNorm": ("x", "gamma", "beta"),
    "GroupNormSilu": ("x", "gamma", "beta"),
    "GroupNormSiluPack": ("x", "gamma", "beta", "threshold"),
    "GroupNormSiluQuantize": ("x", "gamma", "beta", "step"),
    "GroupNormSiluQuantizeUniform": ("x", "gamma", "beta", "divisor", "step", "zero"),
    "QuantizeUniform": ("x", "divisor", "step", "zero"),
    "QuantizeHeads": ("x", "step", "zero"),
    "QuantConv": ("codes", "zero", "weight", "weight_zero", *UNIFORM_TERMS),
    "QuantGemm": ("codes", "zero", "weight", "weight_zero", *UNIFORM_TERMS),
    "QuantMatMul": ("a", "a_zero", "a_step", "b", "b_zero", "b_step"),
    "FloatConv": ("x", "weight", "bias"),
    "UpsampleNearest": ("x",),
    "AveragePool2d": ("x",),
    "MatMul": ("a", "b"),
    "Softmax": ("x",),
    "Transpose": ("x",),
}

OPS = tuple(_INPUTS)

_DTYPES = {"bits": "uint64", "weight": None, "codes": "int8", **dict.fromkeys(("zero", "weight_zero"), "uint8")}
_UNIFORM_DTYPES = {**_DTYPES, **dict.fromkeys(("codes", "a", "a_zero", "b", "b_zero"), "uint8")}

_REPEATED = ("float32", "int8", "uint8", "uint64")  # floats, codes, packed bits


def select(
    op: str,
    inputs: Sequence[TensorSpec | Array],
    attrs: Mapping[str, Any],
    target: Target,
    family: str | None = None,
) -> Kernel:
    """Return the kernel for `op` on `target`; of a product of codes that of `family`, or else of the fastest.

    Raises UnsupportedError for an op without a kernel (of that family) or a weight that is no constant, and
    InvalidModelError for operands whose number, dtypes or shapes do not fit the op.
    """
    if op not in _INPUTS:
        raise UnsupportedError(f"op {op!r} has no kernel; kernels exist for {', '.join(OPS)}")
    names = _INPUTS[op]
    if len(inputs) != len(names):
        raise InvalidModelError(f"{op}: expected {len(names)} inputs ({', '.join(names)}), got {len(inputs)}")
    operands = [_operand(op, name, value) for name, value in zip(names, inputs, strict=True)]
    draft = families.draft(Request(op, dict(zip(names, operands, strict=True)), dict(attrs), target, family))
    weight = operands[names.index("weight")] if "weight" in names else None
    return _finish(op, names, weight, dict(attrs), target, draft)


def _operand(op: str, name: str, value: TensorSpec | Array) -> Operand:
    if isinstance(value, TensorSpec):
        spec, constant = value, None
    else:
        spec, constant = TensorSpec(tuple(value.shape), str(value.dtype)), value
    if name == "bits":
        try:
            spec = words(spec)
        except ValueError as error:
            raise InvalidModelError(f"{op}: input {name!r}: {error}") from None
    expected = (_UNIFORM_DTYPES if op.startswith("Quant") else _DTYPES).get(name, "float32")
    if op == "UpsampleNearest" and spec.dtype in _REPEATED:
        expected = spec.dtype
    if expected is not None and spec.dtype != expected:
        raise InvalidModelError(f"{op}: input {name!r}: expected {expected}, got {spec.dtype}{list(spec.shape)}")
    return Operand(spec, constant)


def _finish(
    op: str,
    names: Sequence[str],
    weight: Operand | None,
    attrs: Mapping[str, Any],
    target: Target,
    draft: Draft,
) -> Kernel:
    kept = tuple(index for index, name in enumerate(names) if name in draft.inputs)
    specs = [(names[index], draft.inputs[names[index]]) for index in kept]
    outputs = [(f"out{index}", spec) for index, spec in enumerate(draft.outputs)]
    scratch = [(f"scratch{index}", spec) for index, spec in enumerate(draft.scratch)]
    key = _key(op, specs, weight, draft, attrs, target)
    symbol = f"{op.lower()}_{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def function(name: str, body: Body) -> Any:
        def emit(*buffers: Any) -> None:
            inputs = dict(zip([name for name, _ in specs], buffers, strict=False))
            outs = buffers[len(specs) : len(specs) + len(outputs)]
            body(inputs, outs, buffers[len(specs) + len(outputs) :])

        return build(name, [*specs, *outputs, *scratch], emit)

    def apart(layout: Body, product: Body) -> tuple[Any, Any]:
        return function(f"{symbol}_layout", layout), function(f"{symbol}_product", product)

    return Kernel(
        function=function(symbol, draft.body),
        kept=kept,
        inputs=tuple(spec for _, spec in specs),
        outputs=tuple(draft.outputs),
        scratch=tuple(draft.scratch),
        pack={names.index(name): pack for name, pack in draft.pack.items()},
        dropped=frozenset(range(len(names))) - frozenset(kept),
        family=draft.family,
        macs=draft.macs,
        key=key,
        apart=partial(apart, *draft.apart) if draft.apart else None,
    )


def _key(
    op: str,
    specs: Sequence[tuple[str, TensorSpec]],
    weight: Operand | None,
    draft: Draft,
    attrs: Mapping[str, Any],
    target: Target,
) -> str:
    parts = [op, draft.family, target.name]
    parts += [f"{name}:{spec.dtype}{list(spec.shape)}" for name, spec in specs]
    parts += [f"weight {list(weight.shape)}"] if weight else []  # its packed form hides channels and kernel
    parts += [f"{name}={_plain(attrs[name])}" for name in sorted(attrs)]
    return " ".join(parts)


def _plain(value: Any) -> str:
    return str(list(value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
