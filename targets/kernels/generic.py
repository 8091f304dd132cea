"""Products in plain loops, for targets without byte instructions: right on every target and shape, fast on none."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tvm import tirx

from edgedm.targets.kernels.builder import Buffer, Expr, block, cast, const, let, load, local, loop, store
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import Epilogue
from edgedm.targets.kernels.quant_operands import Operands
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Array, TensorSpec, as_words

F32 = "float32"
WORD_BITS = 64


def product(shape: Convolution, operands: Operands) -> Draft:
    """QuantConv, QuantGemm, BinaryWeightConv and BinaryWeightGemm."""
    return _binary_weight(shape, operands) if operands.signed else _quant_product(shape, operands)


def _binary_weight(shape: Convolution, operands: Operands) -> Draft:
    """int8[..., C] codes of any size, the canonical weight as words."""
    packed = as_words(operands.weight)
    channels, words = shape.channels, packed.shape[-1]

    def body(inputs: Mapping[str, Buffer], outs: Sequence[Buffer], _: Sequence[Buffer]) -> None:
        def term(pixel: Expr, tap: Expr, channel: Expr, o: Expr) -> Expr:
            word = load(inputs["weight"], (o * shape.taps + tap) * words + channel // WORD_BITS)
            code = cast(load(inputs["codes"], pixel * channels + channel), "int32")
            return code * _sign_of(word, channel % WORD_BITS)

        _product(shape, term, operands.epilogue, inputs, outs[0])

    return Draft(
        family="generic",
        body=body,
        inputs={**operands.specs, "weight": TensorSpec(packed.shape, "uint64")},
        outputs=[TensorSpec(operands.output, F32)],
        pack={"weight": as_words},
        macs=shape.macs,
    )


def _quant_product(shape: Convolution, operands: Operands) -> Draft:
    """Uniform codes: the weight as rows of bytes, or of two codes a byte, the earlier one low."""
    bits, channels = operands.weight_bits, shape.channels
    row_bytes = -(-channels * (4 if bits <= 4 else 8) // 8)

    def pack(weight: Array) -> Array:
        codes = weight.astype(np.uint8)
        if bits > 4:
            return codes
        codes = np.pad(codes, [*[(0, 0)] * (codes.ndim - 1), (0, channels % 2)])
        return codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)

    def body(inputs: Mapping[str, Buffer], outs: Sequence[Buffer], _: Sequence[Buffer]) -> None:
        zero = let(cast(load(inputs["zero"], 0), "int32"))

        def term(pixel: Expr, tap: Expr, channel: Expr, o: Expr) -> Expr:
            row = (o * shape.taps + tap) * row_bytes
            if bits > 4:
                w = cast(load(inputs["weight"], row + channel), "int32")
            else:
                pair = cast(load(inputs["weight"], row + channel // 2), "int32")
                w = (pair >> (channel % 2 * 4)) & 15
            code = cast(load(inputs["codes"], pixel * channels + channel), "int32")
            return (code - zero) * (w - cast(load(inputs["weight_zero"], o), "int32"))

        _product(shape, term, operands.epilogue, inputs, outs[0])

    weight = pack(operands.weight)
    return Draft(
        family=f"generic {operands.bits}x{bits}",
        body=body,
        inputs={**operands.specs, "weight": TensorSpec(weight.shape, "uint8")},
        outputs=[TensorSpec(operands.output, F32)],
        pack={"weight": pack},
        macs=shape.macs,
    )


def quant_matmul(size: tuple[int, int, int, int], transposed: bool, specs: Mapping[str, TensorSpec]) -> Draft:
    """QuantMatMul; `size` is (heads, M, N, K)."""
    heads, m, n, k = size

    def body(inputs: Mapping[str, Buffer], outs: Sequence[Buffer], _: Sequence[Buffer]) -> None:
        a, b = inputs["a"], inputs["b"]
        with loop(heads) as h:
            zero_a, zero_b = (let(cast(load(inputs[name], h), "int32")) for name in ("a_zero", "b_zero"))
            step = let(load(inputs["a_step"], h) * load(inputs["b_step"], h))
            with loop(m) as row, loop(n) as column, block():
                acc = local(1, "int32")
                store(acc, const(0, "int32"), 0)
                with loop(k) as t:
                    left = cast(load(a, (h * m + row) * k + t), "int32") - zero_a
                    at = (h * n + column) * k + t if transposed else (h * k + t) * n + column
                    right = cast(load(b, at), "int32") - zero_b
                    store(acc, load(acc, 0) + left * right, 0)
                store(outs[0], cast(load(acc, 0), F32) * step, (h * m + row) * n + column)

    output = TensorSpec((1, heads, m, n), F32)
    return Draft("generic matmul", body, specs, [output], macs=heads * m * n * k)


def _product(
    shape: Convolution,
    term: Callable[[Expr, Expr, Expr, Expr], Expr],
    epilogue: Epilogue,
    inputs: Mapping[str, Buffer],
    y: Buffer,
) -> None:
    """The int32 sum over valid taps and channels of term(pixel, tap, channel, out channel), and the epilogue."""
    (kh, kw), (sh, sw), (top, left) = shape.kernel, shape.strides, shape.pads[:2]
    with loop(shape.out_height) as oh, loop(shape.out_width) as ow, loop(shape.out_channels) as o, block():
        acc = local(1, "int32")
        store(acc, const(0, "int32"), 0)
        first_h, first_w = let(tirx.max(0, top - oh * sh)), let(tirx.max(0, left - ow * sw))
        count_h = tirx.min(kh, shape.height + top - oh * sh) - first_h
        count_w = tirx.min(kw, shape.width + left - ow * sw) - first_w
        with loop(count_h, first_h) as i, loop(count_w, first_w) as j, loop(shape.channels) as c:
            pixel = (oh * sh + i - top) * shape.width + (ow * sw + j - left)
            store(acc, load(acc, 0) + term(pixel, i * kw + j, c, o), 0)
        row = oh * shape.out_width + ow
        value = epilogue.apply(cast(load(acc, 0), F32), inputs, row, o, 1)
        store(y, value, row * shape.out_channels + o)


def _sign_of(word: Expr, bit: Expr) -> Expr:
    """+1 or -1 as int32: bit `bit` of a packed word."""
    return cast((word >> cast(bit, "uint64")) & const(1, "uint64"), "int32") * 2 - 1
