"""Which family of kernels serves an op on a target."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.targets.kernels import bitserial, generic, lookup
from edgedm.targets.kernels.builder import cast, load
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import Epilogue
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Operand, Request, TensorSpec, as_words
from edgedm.targets.tuning import tiling

_WORD = 64


def draft(request: Request) -> Draft:
    """Return the kernel draft of the best family for a request."""
    return _GENERIC[request.op](request)


def _pack(request: Request) -> Draft:
    x, threshold = request.operands["x"], request.operands["threshold"]
    channels = x.shape[-1]
    rows = x.spec.size // channels
    _require_finite(request.op, threshold)
    _require_size(request.op, "threshold", threshold, channels)
    outputs = [TensorSpec((*x.shape[:-1], -(-channels // _WORD)), "uint64")]
    if request.op == "PackBitsMeanAbs":
        outputs.append(TensorSpec((*x.shape[:-1], 1), "float32"))

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        mean_abs = outs[1] if len(outs) > 1 else None
        generic.pack_bits(inputs["x"], inputs["threshold"], outs[0], mean_abs, rows, channels)

    return Draft("generic", body, _specs(request), outputs)


def _quantize(request: Request) -> Draft:
    attrs = request.attrs
    low, high = attrs.get("low", -8), attrs.get("high", 7)
    shape = request.operands["x"].shape

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        generic.quantize_codes(inputs["x"], inputs["step"], outs[0], low, high)

    return Draft("generic", body, _specs(request), [TensorSpec(shape, "int8")])


def _norm(request: Request) -> Draft:
    x = request.operands["x"]
    channels = x.shape[-1]
    rows = x.spec.size // channels
    groups, epsilon = request.attrs["groups"], request.attrs["epsilon"]
    if channels % groups:
        raise InvalidModelError(f"{request.op}: {channels} channels are not divisible into {groups} groups")
    act = request.op != "GroupNorm"
    y = TensorSpec(x.shape, "float32")
    scratch: list[TensorSpec] = []
    if request.op == "GroupNormSiluPack":
        bits = TensorSpec((*x.shape[:-1], -(-channels // _WORD)), "uint64")
        outputs = [y, bits, TensorSpec((*x.shape[:-1], 1), "float32")]
        _require_finite(request.op, request.operands["threshold"])
    elif request.op == "GroupNormSiluQuantize":
        outputs, scratch = [TensorSpec(x.shape, "int8")], [y]
    else:
        outputs = [y]

    def body(inputs: Mapping[str, Any], outs: Any, extra: Any) -> None:
        y = extra[0] if extra else outs[0]
        generic.group_norm(inputs["x"], inputs["gamma"], inputs["beta"], y, rows, channels, groups, epsilon, act)
        if request.op == "GroupNormSiluPack":
            generic.pack_bits(y, inputs["threshold"], outs[1], outs[2], rows, channels)
        if request.op == "GroupNormSiluQuantize":
            low, high = request.attrs.get("low", -8), request.attrs.get("high", 7)
            generic.quantize_codes(y, inputs["step"], outs[0], low, high)

    return Draft("generic", body, _specs(request), outputs, scratch)


def _binary(request: Request) -> Draft:
    weight, bits = _constant_weight(request), request.operands["bits"]
    channels = request.attrs["channels"]
    shape, output = _geometry(request, bits.shape, channels)
    width = bits.shape[-1]
    if width != -(-channels // _WORD):
        raise InvalidModelError(f"{request.op}: {channels} channels need {-(-channels // _WORD)} words, got {width}")
    epilogue = Epilogue.of(_terms(request), output)
    tile = tiling.bitserial(request.target, shape)
    return bitserial.draft(shape, bits.spec, weight, output, epilogue, tile)


def _binary_weight(request: Request) -> Draft:
    weight, codes = _constant_weight(request), request.operands["codes"]
    channels = codes.shape[-1]
    shape, output = _geometry(request, codes.shape, channels)
    epilogue = Epilogue.of(_terms(request), output)
    if "ssse3" in request.target.features and request.attrs.get("code_bits", 4) <= 4:
        reader = tiling.lookup(request.target, shape)
        return lookup.draft(shape, codes.spec, weight, output, epilogue, reader)
    packed = as_words(weight)
    width = packed.shape[-1]

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        def term(pixel: Any, tap: Any, channel: Any, o: Any) -> Any:
            w = load(inputs["weight"], (o * shape.taps + tap) * width + channel // _WORD)
            x = cast(load(inputs["codes"], pixel * channels + channel), "int32")
            return x * generic.sign_of(w, channel % _WORD)

        generic.product(shape, term, channels, "int32", epilogue, inputs, outs[0])

    inputs = {"codes": codes.spec, "weight": TensorSpec(packed.shape, "uint64"), **_kept(epilogue)}
    return Draft("generic", body, inputs, [TensorSpec(output, "float32")], pack={"weight": as_words}, macs=shape.macs)


def _float_conv(request: Request) -> Draft:
    x, weight, bias = (request.operands[name] for name in ("x", "weight", "bias"))
    out_channels, channels, *kernel = weight.shape
    shape = Convolution.of(x.shape, channels, out_channels, tuple(kernel), request.attrs)
    output = (1, shape.out_height, shape.out_width, out_channels)
    epilogue = Epilogue.of({"addend": bias}, output)

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        def term(pixel: Any, tap: Any, channel: Any, o: Any) -> Any:
            w = load(inputs["weight"], (o * channels + channel) * shape.taps + tap)
            return load(inputs["x"], pixel * channels + channel) * w

        terms = {"addend": inputs["bias"]} if "bias" in inputs else {}
        generic.product(shape, term, channels, "float32", epilogue, terms, outs[0])

    inputs = {"x": x.spec, "weight": weight.spec}
    if epilogue.terms:
        inputs["bias"] = bias.spec
    return Draft("generic", body, inputs, [TensorSpec(output, "float32")], macs=shape.macs)


def _matmul(request: Request) -> Draft:
    a, b = request.operands["a"].shape, request.operands["b"].shape
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise InvalidModelError(f"MatMul: {list(a)} times {list(b)}")
    m, k, n = a[-2], a[-1], b[-1]
    batch = a[:-2] if math.prod(a[:-2]) >= math.prod(b[:-2]) else b[:-2]
    count = math.prod(batch)
    for own in (a[:-2], b[:-2]):
        if math.prod(own) not in (1, count):
            raise UnsupportedError(f"MatMul: batch axes {list(a[:-2])} and {list(b[:-2])}: only equal ones or one")

    def index_of(own: tuple[int, ...]) -> Callable[[Any], Any]:
        return (lambda i: 0) if math.prod(own) == 1 else (lambda i: i)

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        generic.matmul(inputs["a"], inputs["b"], outs[0], m, n, k, index_of(a[:-2]), index_of(b[:-2]), count)

    output = TensorSpec((*batch, m, n), "float32")
    return Draft("generic", body, _specs(request), [output], macs=count * m * n * k)


def _softmax(request: Request) -> Draft:
    x = request.operands["x"]
    if request.attrs.get("axis", -1) not in (-1, len(x.shape) - 1):
        raise UnsupportedError(f"Softmax: axis {request.attrs['axis']} of {list(x.shape)}: only the last")

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        generic.softmax(inputs["x"], outs[0], x.spec.size // x.shape[-1], x.shape[-1])

    return Draft("generic", body, _specs(request), [x.spec])


def _upsample(request: Request) -> Draft:
    batch, height, width, channels = request.operands["x"].shape
    factor = request.attrs["factor"]

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        generic.upsample(inputs["x"], outs[0], height, width, channels, factor)

    output = TensorSpec((batch, height * factor, width * factor, channels), "float32")
    return Draft("generic", body, _specs(request), [output])


def _average_pool(request: Request) -> Draft:
    batch, height, width, channels = request.operands["x"].shape
    kh, kw = request.attrs["kernel"]

    def body(inputs: Mapping[str, Any], outs: Any, _: Any) -> None:
        generic.average_pool(inputs["x"], outs[0], height, width, channels, (kh, kw))

    output = TensorSpec((batch, height // kh, width // kw, channels), "float32")
    return Draft("generic", body, _specs(request), [output])


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
    if weight.value is None:
        raise UnsupportedError(f"{request.op}: the weight is computed at run time; it must be a constant")
    if weight.spec.dtype != "uint8" or len(weight.shape) != rank:
        raise InvalidModelError(
            f"{request.op}: weight: expected packed uint8 of rank {rank}, got {weight.spec.dtype}{list(weight.shape)}"
        )
    return weight.value


def _terms(request: Request) -> dict[str, Operand]:
    names = ("multiplier", "pixel_scale", "addend", "residual", "residual_scale")
    return {name: request.operands[name] for name in names if name in request.operands}


def _kept(epilogue: Epilogue) -> dict[str, TensorSpec]:
    return {name: operand.spec for name, operand in epilogue.terms.items()}


def _specs(request: Request) -> dict[str, TensorSpec]:
    return {name: operand.spec for name, operand in request.operands.items()}


def _require_size(op: str, name: str, operand: Operand, size: int) -> None:
    if operand.spec.size != size:
        raise InvalidModelError(f"{op}: {name}: expected {size} values, got shape {list(operand.shape)}")


def _require_finite(op: str, threshold: Operand) -> None:
    import numpy as np

    if threshold.value is not None and not np.all(np.isfinite(threshold.value)):
        raise InvalidModelError(f"{op}: threshold: every value must be finite")


_GENERIC: Mapping[str, Callable[[Request], Draft]] = {
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
    "FloatConv": _float_conv,
    "UpsampleNearest": _upsample,
    "AveragePool2d": _average_pool,
    "MatMul": _matmul,
    "Softmax": _softmax,
}
