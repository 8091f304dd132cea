"""Products in plain loops, for targets without a byte shuffle: right on every target and shape, fast on none."""

from collections.abc import Callable, Mapping, Sequence

from tvm import tirx

from edgedm.targets.kernels.builder import Buffer, Expr, block, cast, const, let, load, local, loop, store
from edgedm.targets.kernels.draft import Draft
from edgedm.targets.kernels.epilogue import Epilogue
from edgedm.targets.kernels.shapes import Convolution
from edgedm.targets.kernels.spec import Array, TensorSpec, as_words

F32 = "float32"
WORD_BITS = 64


def binary_weight(
    shape: Convolution, codes: TensorSpec, weight: Array, output: tuple[int, ...], epilogue: Epilogue
) -> Draft:
    """BinaryWeightConv and BinaryWeightGemm: int8[..., C] codes of any size, the canonical weight as words."""
    packed = as_words(weight)
    channels, words = shape.channels, packed.shape[-1]

    def body(inputs: Mapping[str, Buffer], outs: Sequence[Buffer], _: Sequence[Buffer]) -> None:
        def term(pixel: Expr, tap: Expr, channel: Expr, o: Expr) -> Expr:
            word = load(inputs["weight"], (o * shape.taps + tap) * words + channel // WORD_BITS)
            code = cast(load(inputs["codes"], pixel * channels + channel), "int32")
            return code * _sign_of(word, channel % WORD_BITS)

        _product(shape, term, epilogue, inputs, outs[0])

    terms = {name: operand.spec for name, operand in epilogue.terms.items()}
    return Draft(
        family="generic",
        body=body,
        inputs={"codes": codes, "weight": TensorSpec(packed.shape, "uint64"), **terms},
        outputs=[TensorSpec(output, F32)],
        pack={"weight": as_words},
        macs=shape.macs,
    )


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
