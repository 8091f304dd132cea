"""Which family of kernels serves an op on a target."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.targets.kernels import (
    dense,
    float_conv,
    norm,
    pack,
    product_families,
    quant_families,
    quantize,
    transpose,
)
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import Epilogue
from edgedm.targets.kernels.quant_operands import Operands, sign_codes
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Operand, Request, TensorSpec
from edgedm.targets.tuning import tiling

_WORD = 64
_FEWEST_BITS = 2  # of codes that are no signs


def draft(request: Request) -> Draft:
    """Return the kernel draft of the best family for a request."""
    return _FAMILIES[request.op](request)


def _pack(request: Request) -> Draft:
    x, threshold = request.operands["x"], request.operands["threshold"]
    channels = x.shape[-1]
    rows = x.spec.size // channels
    lanes = tiling.sign_lanes(request.target)
    _require_finite(request.op, threshold)
    _require_size(request.op, "threshold", threshold, channels)
    outputs = [TensorSpec((*x.shape[:-1], -(-channels // _WORD)), "uint64")]
    if request.op == "PackBitsMeanAbs":
        outputs.append(TensorSpec((*x.shape[:-1], 1), "float32"))

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        mean_abs = outs[1] if len(outs) > 1 else None
        pack.pack_bits(inputs["x"], inputs["threshold"], outs[0], mean_abs, rows, channels, lanes)

    return Draft(f"pack {lanes}", body, _specs(request), outputs)


def _quantize(request: Request) -> Draft:
    attrs = request.attrs
    low, high = attrs.get("low", -8), attrs.get("high", 7)
    shape = request.operands["x"].shape
    quant_families.require_steps(request)
    lanes, fused = tiling.float_lanes(request.target), request.target.fused

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        grid = quantize.Signed(inputs["step"], low, high, fused)
        quantize.quantize_codes(inputs["x"], grid, outs[0], lanes)

    return Draft(f"quantize {lanes}", body, _specs(request), [TensorSpec(shape, "int8")])


def _norm(request: Request) -> Draft:
    x = request.operands["x"]
    channels = x.shape[-1]
    rows = x.spec.size // channels
    groups, epsilon = request.attrs["groups"], request.attrs["epsilon"]
    if channels % groups:
        raise InvalidModelError(f"{request.op}: {channels} channels are not divisible into {groups} groups")
    lanes, fused = tiling.float_lanes(request.target), request.target.fused
    form = norm.Norm(rows, channels, groups, epsilon, request.op != "GroupNorm", lanes, fused)
    y = TensorSpec(x.shape, "float32")
    outputs = [y]
    if request.op == "GroupNormSiluPack":
        bits = TensorSpec((*x.shape[:-1], -(-channels // _WORD)), "uint64")
        outputs = [y, bits, TensorSpec((*x.shape[:-1], 1), "float32")]
        _require_finite(request.op, request.operands["threshold"])
    elif request.op == "GroupNormSiluQuantize":
        outputs = [TensorSpec(x.shape, "int8")]
        quant_families.require_steps(request)
    specs = _specs(request)
    if request.op == "GroupNormSiluQuantizeUniform":
        outputs = [TensorSpec(x.shape, "uint8")]
        specs, divisors = quant_families.grid_specs(request, 1, channels)
        top = quant_families.top_code(request, "bits")

    def body(inputs: Mapping[str, Any], outs: Any, scratch: Any) -> None:
        *sums, mean, scale = scratch
        form.statistics(inputs["x"], inputs["gamma"], sums, mean, scale)
        operands = [inputs["x"], mean, scale, inputs["beta"]]
        if request.op == "GroupNormSiluPack":
            form.pack(operands, inputs["threshold"], *outs)
        elif request.op == "GroupNormSiluQuantize":
            low, high = request.attrs.get("low", -8), request.attrs.get("high", 7)
            form.quantize(operands, quantize.Signed(inputs["step"], low, high, fused), outs[0])
        elif request.op == "GroupNormSiluQuantizeUniform":
            grid = quantize.Uniform(inputs["step"], inputs["zero"], inputs.get("divisor"), divisors, top, fused)
            form.quantize_uniform(operands, grid, outs[0])
        else:
            form.write(operands, outs[0])

    scratch = [TensorSpec((count, channels), "float32") for count in (*form.scratch_rows, 1, 1)]
    return Draft(f"norm {lanes}", body, specs, outputs, scratch)


def _binary(request: Request) -> Draft:
    bits, channels = request.operands["bits"], request.attrs["channels"]
    width = bits.shape[-1]
    if width != -(-channels // _WORD):
        raise InvalidModelError(f"{request.op}: {channels} channels need {-(-channels // _WORD)} words, got {width}")
    return _signs(request, "bits", channels, 1)


def _binary_weight(request: Request) -> Draft:
    bits = max(_FEWEST_BITS, request.attrs.get("code_bits", 4))
    return _signs(request, "codes", request.operands["codes"].shape[-1], bits)


def _signs(request: Request, name: str, channels: int, bits: int) -> Draft:
    """The product of operand `name`, signs or int8 codes of `bits`, with weights that are signs."""
    weight, image = _constant_weight(request), request.operands[name]
    shape, output = _geometry(request, image.shape, channels)
    epilogue = Epilogue.of(_terms(request), output)
    specs = {name: image.spec, **{term: operand.spec for term, operand in epilogue.terms.items()}}
    operands = Operands(bits, 1, weight, None, specs, epilogue, output, sign_codes(channels), name)
    return product_families.draft(shape, operands, request.target, request.family)


def _float_conv(request: Request) -> Draft:
    x, weight, bias = (request.operands[name] for name in ("x", "weight", "bias"))
    out_channels, channels, *kernel = weight.shape
    shape = Convolution.of(x.shape, channels, out_channels, tuple(kernel), request.attrs)
    _require_constant(request.op, "weight", weight)
    return float_conv.draft(shape, x.spec, weight, bias, tiling.float_conv(request.target, shape))


def _matmul(request: Request) -> Draft:
    a, b = request.operands["a"].shape, request.operands["b"].shape
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise InvalidModelError(f"MatMul: {list(a)} times {list(b)}")
    m, k, n = a[-2], a[-1], b[-1]
    batch, own_a, own_b = _common_batch(a[:-2], b[:-2])
    output = TensorSpec((*batch, m, n), "float32")
    count = math.prod(batch)
    if own_b == 1 and own_a == count:  # one right operand for all: the batch is more rows
        count, m = 1, count * m
    lanes, rows = tiling.float_lanes(request.target), tiling.matmul_rows(request.target)

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        dense.matmul(inputs["a"], inputs["b"], outs[0], (count, m, n, k), (own_a > 1, own_b > 1), lanes, rows)

    return Draft(f"matmul {lanes}", body, _specs(request), [output], macs=count * m * n * k)


def _common_batch(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """Return the output's batch axes and how many matrices each operand holds: all of them or one."""
    batch = a if (math.prod(a), len(a)) >= (math.prod(b), len(b)) else b
    counts = math.prod(a), math.prod(b)
    rank = max(len(a), len(b))
    batch = (*([1] * (rank - len(batch))), *batch)
    if any(own not in (1, math.prod(batch)) for own in counts):
        raise UnsupportedError(
            f"MatMul: batch axes {list(a)} and {list(b)}: they must be equal, or one operand's all 1"
        )
    return batch, *counts


def _softmax(request: Request) -> Draft:
    x = request.operands["x"]
    if request.attrs.get("axis", -1) not in (-1, len(x.shape) - 1):
        raise UnsupportedError(f"Softmax: axis {request.attrs['axis']} of {list(x.shape)}: only the last")

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        dense.softmax(inputs["x"], outs[0], x.spec.size // x.shape[-1], x.shape[-1], lanes, fused)

    lanes, fused = tiling.float_lanes(request.target), request.target.fused
    return Draft(f"softmax {lanes}", body, _specs(request), [x.spec])


def _transpose(request: Request) -> Draft:
    shape = request.operands["x"].shape
    rank = len(shape)
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    perm = list(request.attrs.get("perm", range(rank - 1, -1, -1)))
    if rank < 2 or perm != swapped:
        raise UnsupportedError(f"Transpose: {perm} of {list(shape)}: only the last two axes may change places")
    *batch, rows, columns = shape
    lanes = tiling.float_lanes(request.target)

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        transpose.transpose(inputs["x"], outs[0], (math.prod(batch), rows, columns), lanes)

    return Draft(f"transpose {lanes}", body, _specs(request), [TensorSpec((*batch, columns, rows), "float32")])


def _upsample(request: Request) -> Draft:
    batch, height, width, channels = _image(request)
    x = request.operands["x"].spec
    lanes = request.target.vector_bytes // (x.nbytes // x.size)
    lanes = lanes if channels >= lanes else math.gcd(channels, lanes)
    factor = request.attrs["factor"]

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        dense.upsample(inputs["x"], outs[0], (height, width, channels), factor, lanes)

    output = TensorSpec((batch, height * factor, width * factor, channels), x.dtype)
    return Draft(f"resize {lanes}", body, _specs(request), [output])


def _average_pool(request: Request) -> Draft:
    batch, height, width, channels = _image(request)
    lanes = tiling.float_lanes(request.target)
    kh, kw = request.attrs["kernel"]

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        dense.average_pool(inputs["x"], outs[0], (height, width, channels), (kh, kw), lanes)

    output = TensorSpec((batch, height // kh, width // kw, channels), "float32")
    return Draft(f"resize {lanes}", body, _specs(request), [output])


def _image(request: Request) -> tuple[int, int, int, int]:
    shape = request.operands["x"].shape
    if len(shape) != 4:
        raise InvalidModelError(f"{request.op}: expected [1, H, W, C], got {list(shape)}")
    return shape


def _geometry(request: Request, image: tuple[int, ...], channels: int) -> tuple[Convolution, tuple[int, ...]]:
    weight = request.operands["weight"].shape
    if request.op.endswith("Conv"):
        shape = Convolution.of(image, channels, weight[0], weight[1:3], request.attrs)
        return shape, (1, shape.out_height, shape.out_width, weight[0])
    rows = math.prod(image[:-1])
    return Convolution(1, rows, channels, weight[0]), (*image[:-1], weight[0])


def _constant_weight(request: Request) -> Any:
    weight = request.operands["weight"]
    rank = 4 if request.op.endswith("Conv") else 2
    _require_constant(request.op, "weight", weight)
    if weight.spec.dtype != "uint8" or len(weight.shape) != rank:
        raise InvalidModelError(
            f"{request.op}: weight: expected packed uint8 of rank {rank}, got {weight.spec.dtype}{list(weight.shape)}"
        )
    return weight.value


def _terms(request: Request) -> dict[str, Operand]:
    names = ("multiplier", "pixel_scale", "addend", "residual", "residual_scale")
    return {name: request.operands[name] for name in names if name in request.operands}


def _specs(request: Request) -> dict[str, TensorSpec]:
    return {name: operand.spec for name, operand in request.operands.items()}


def _require_constant(op: str, name: str, operand: Operand) -> None:
    if operand.value is None:
        raise UnsupportedError(f"{op}: the {name} is computed at run time; it must be a constant")


def _require_size(op: str, name: str, operand: Operand, size: int) -> None:
    if operand.spec.size != size:
        raise InvalidModelError(f"{op}: {name}: expected {size} values, got shape {list(operand.shape)}")


def _require_finite(op: str, threshold: Operand) -> None:
    import numpy as np

    if threshold.value is not None and not np.all(np.isfinite(threshold.value)):
        raise InvalidModelError(f"{op}: threshold: every value must be finite")


_FAMILIES: Mapping[str, Callable[[Request], Draft]] = {
    "PackBits": _pack,
    "PackBitsMeanAbs": _pack,
    "QuantizeCodes": _quantize,
    "BinaryConv": _binary,
    "BinaryGemm": _binary,
    "BinaryWeightConv": _binary_weight,
    "BinaryWeightGemm": _binary_weight,
    "GroupNorm": _norm,
    "GroupNormSilu": _norm,
    "GroupNormSiluPack": _norm,
    "GroupNormSiluQuantize": _norm,
    "GroupNormSiluQuantizeUniform": _norm,
    "FloatConv": _float_conv,
    "UpsampleNearest": _upsample,
    "AveragePool2d": _average_pool,
    "MatMul": _matmul,
    "Softmax": _softmax,
    "Transpose": _transpose,
    **quant_families.FAMILIES,
}
