"""Which family of kernels serves an op on uniform integer codes: the part of `families` for W4A4 and its like."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.targets.kernels import dot_matmul, generic, product_families, quantize
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import UNIFORM_TERMS, Epilogue
from edgedm.targets.kernels.quant_operands import Operands, require_exact, uniform_codes
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Operand, Request, TensorSpec
from edgedm.targets.tuning import tiling

_FEWEST, _MOST = 2, 8  # bits of a code


def quantizer(request: Request) -> Draft:
    """QuantizeUniform and QuantizeHeads."""
    op, x = request.op, request.operands["x"]
    heads = op == "QuantizeHeads"
    if heads and (len(x.shape) != 4 or x.shape[0] != 1):
        raise InvalidModelError(f"{op}: x: expected [1, H, T, D], got {list(x.shape)}")
    count = x.shape[1] if heads else 1
    channels = x.shape[-1] if x.shape else 1
    rows = x.spec.size // channels // count
    specs, divisors = grid_specs(request, count, channels)
    top = top_code(request, "bits")
    lanes, fused = tiling.float_lanes(request.target), request.target.fused

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        grid = quantize.Uniform(inputs["step"], inputs["zero"], inputs.get("divisor"), divisors, top, fused)
        quantize.quantize(inputs["x"], grid, outs[0], (count, rows, channels), lanes)

    return Draft(f"quantize {lanes}", body, specs, [TensorSpec(x.shape, "uint8")])


def grid_specs(request: Request, grids: int, channels: int) -> tuple[dict[str, TensorSpec], int]:
    """Return the operands that a uniform quantiser keeps and how many divisors; no division by a constant 1."""
    require_steps(request)
    operands = dict(request.operands)
    divisor = operands.get("divisor")
    if divisor is not None and divisor.spec.size not in (1, channels):
        raise InvalidModelError(
            f"{request.op}: divisor: expected 1 or {channels} values, got shape {list(divisor.shape)}"
        )
    for name in ("step", "zero"):
        if operands[name].spec.size != grids:
            raise InvalidModelError(
                f"{request.op}: {name}: expected {grids} values, got shape {list(operands[name].shape)}"
            )
    if divisor is None or divisor.equals(1.0):
        operands.pop("divisor", None)
        divisors = 1
    else:
        divisors = divisor.spec.size
    return {name: operand.spec for name, operand in operands.items()}, divisors


def require_steps(request: Request) -> None:
    """Raise InvalidModelError for constant steps that divide nothing: targets would give codes of their own then."""
    step = request.operands["step"].value
    if step is not None and not (np.isfinite(step).all() and np.all(step)):
        raise InvalidModelError(f"{request.op}: step: expected finite numbers other than 0")


def top_code(request: Request, name: str) -> int:
    """Return the largest code of attribute `name` bits."""
    return int(2 ** bits_of(request, name) - 1)


def bits_of(request: Request, name: str) -> int:
    """Return attribute `name` (4 if absent), a number of bits from 2 to 8."""
    bits = int(request.attrs.get(name, 4))
    if not _FEWEST <= bits <= _MOST:
        raise InvalidModelError(f"{request.op}: {name}: expected {_FEWEST}..{_MOST}, got {bits}")
    return bits


def product(request: Request) -> Draft:
    """QuantConv and QuantGemm."""
    shape, operands = _operands(request)
    return product_families.draft(shape, operands, request.target, request.family)


def matmul(request: Request) -> Draft:
    """QuantMatMul."""
    a, b = (request.operands[name].shape for name in "ab")
    transposed = bool(request.attrs.get("transposed", 1))
    if len(a) != 4 or len(b) != 4 or a[0] != 1 or b[:2] != a[:2] or b[3 if transposed else 2] != a[3]:
        raise InvalidModelError(f"QuantMatMul: {list(a)} times {list(b)}, transposed = {int(transposed)}")
    heads, m, k = a[1:]
    n = b[2] if transposed else b[3]
    for name in ("a_zero", "a_step", "b_zero", "b_step"):
        if request.operands[name].spec.size != heads:
            raise InvalidModelError(
                f"QuantMatMul: {name}: expected {heads} values, got shape {list(request.operands[name].shape)}"
            )
    bits, other_bits = bits_of(request, "bits"), bits_of(request, "other_bits")
    require_exact(request.op, k, bits, other_bits)
    specs = {name: operand.spec for name, operand in request.operands.items()}
    tile = tiling.dot(request.target, m, bits, other_bits, nibbles=False, constant=False)
    if tile is None:
        return generic.quant_matmul((heads, m, n, k), transposed, specs)
    return dot_matmul.draft((heads, m, n, k), transposed, specs, tile)


def _operands(request: Request) -> tuple[Convolution, Operands]:
    op = request.op
    codes, weight, zeros = (request.operands[name] for name in ("codes", "weight", "weight_zero"))
    for name, operand in (("weight", weight), ("weight_zero", zeros)):
        if operand.value is None:
            raise UnsupportedError(f"{op}: the {name} is computed at run time; it must be a constant")
    bits, weight_bits = bits_of(request, "bits"), bits_of(request, "weight_bits")
    rank = 4 if op == "QuantConv" else 2
    if len(weight.shape) != rank or not codes.shape or codes.shape[-1] != weight.shape[-1]:
        raise InvalidModelError(f"{op}: weight {list(weight.shape)} does not fit codes {list(codes.shape)}")
    values = np.asarray(weight.value).astype(np.uint8)
    zero_values = np.asarray(zeros.value)
    if values.size and values.max() > 2**weight_bits - 1:
        raise InvalidModelError(f"{op}: weight: a code is {values.max()}, beyond {weight_bits} bits")
    if zero_values.shape != weight.shape[:1]:
        raise InvalidModelError(f"{op}: weight_zero: expected {weight.shape[0]} values, got {list(zeros.shape)}")
    if zero_values.size and zero_values.max() > 2**weight_bits - 1:
        raise InvalidModelError(f"{op}: weight_zero: a code is {zero_values.max()}, beyond {weight_bits} bits")
    if request.operands["zero"].spec.size != 1:
        raise InvalidModelError(f"{op}: zero: expected 1 value, got shape {list(request.operands['zero'].shape)}")
    require_exact(op, math.prod(weight.shape[1:]), bits, weight_bits)
    channels, out_channels = weight.shape[-1], weight.shape[0]
    if op == "QuantConv":
        shape = Convolution.of(codes.shape, channels, out_channels, weight.shape[1:3], request.attrs)
        output: tuple[int, ...] = (1, shape.out_height, shape.out_width, out_channels)
    else:
        shape = Convolution(1, math.prod(codes.shape[:-1]), channels, out_channels)
        output = (*codes.shape[:-1], out_channels)
    terms: dict[str, Operand] = {name: request.operands[name] for name in UNIFORM_TERMS}
    epilogue = Epilogue.of(terms, output)
    specs = {name: request.operands[name].spec for name in ("codes", "zero", "weight", "weight_zero")}
    specs |= {name: operand.spec for name, operand in epilogue.terms.items()}
    needed = max(1, int(values.max(initial=0)).bit_length())  # uint4 holds narrower weights too
    return shape, Operands(bits, needed, values, zero_values, specs, epilogue, output, uniform_codes)


FAMILIES: Mapping[str, Callable[[Request], Draft]] = {
    "QuantizeUniform": quantizer,
    "QuantizeHeads": quantizer,
    "QuantConv": product,
    "QuantGemm": product,
    "QuantMatMul": matmul,
}
