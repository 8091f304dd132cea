"""Random layers through all fusions: any geometry, shared and overridable weights, signs, several readers."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pass_testing import graph, signs, survive

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Layer:
    """One residual layer around a low-bit convolution."""

    low_bit: str  # W1A1 or W1A4
    channels: int
    outputs: int
    height: int
    width: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    norm: bool
    mean: bool  # a factor per pixel, from the mean of |a|
    scale: str  # constant, input or none
    bias: bool
    row: bool
    shortcut: bool  # where shapes allow
    weight_is_input: bool
    twice: bool  # the same weight, on another activation
    read_elsewhere: bool  # the product's result is an output as well
    groups: bool  # where channels allow
    seed: int

    @property
    def grouped(self) -> bool:
        return self.groups and self.channels % 2 == self.outputs % 2 == 0

    @property
    def has_kernel(self) -> bool:
        return not (self.weight_is_input or self.grouped)

    @property
    def size(self) -> tuple[int, int]:
        top, left, bottom, right = self.pads
        high = (self.height + top + bottom - self.kernel[0]) // self.strides[0] + 1
        wide = (self.width + left + right - self.kernel[1]) // self.strides[1] + 1
        return high, wide

    def model(self) -> ir.Model:
        rng = np.random.default_rng(self.seed)
        high, wide = self.size
        full, result = f"1,{self.channels},{self.height},{self.width}", f"1,{self.outputs},{high},{wide}"
        plain = f"strides={list(self.strides)}, pads={list(self.pads)}"
        geometry = f"{plain}, group=2" if self.grouped else plain
        inner = self.channels // 2 if self.grouped else self.channels
        inputs, outputs = [f"float[{full}] x"], []
        constants: dict[str, np.ndarray] = {}
        lines: list[str] = []

        def constant(name: str, *shape: int) -> str:
            constants[name] = rng.standard_normal(shape).astype(np.float32)
            return name

        activation = "x"
        if self.norm:
            groups = next(count for count in (4, 3, 2, 1) if self.channels % count == 0)
            constant("gamma", self.channels), constant("beta", self.channels)
            lines.append(f"n = GroupNormalization<num_groups={groups}>(x, gamma, beta) s = Sigmoid(n) a = Mul(s, n)")
            activation = "a"
        if self.low_bit == "W1A1":
            lines.append(f"b = edgedm.Binarize({activation}, {constant('t', 1, self.channels, 1, 1)})")
        else:
            constants |= {"step": np.array(0.3, np.float32), "zero": np.zeros((), ml_dtypes.int4)}
            lines.append(f"q = QuantizeLinear({activation}, step, zero) b = DequantizeLinear(q, step, zero)")
        if self.weight_is_input:
            packed = 8 * -(-inner // 64)
            inputs.append(f"uint8[{self.outputs},{self.kernel[0]},{self.kernel[1]},{packed}] w")
        else:
            constants["w"] = signs(rng, self.outputs, *self.kernel, inner)
        lines.append(f"u = edgedm.UnpackBits<channels={inner}>(w) c = Conv<{geometry}>(b, u)")
        if self.read_elsewhere:
            outputs.append(f"float[{result}] c")
        if self.twice:
            lines.append(
                f"b2 = edgedm.Binarize(x, {constant('t2', 1, self.channels, 1, 1)}) z = Conv<{geometry}>(b2, u)"
            )
            outputs.append(f"float[{result}] z")
        value = self._epilogue(lines, inputs, constant, "c", activation, plain, f"float[1,{self.outputs},1,1]")
        lines.append(f"y = Identity({value})")
        body = " ".join(lines)
        if self.mean:
            constants["axes"] = np.array([1])
        return graph(
            f"g ({', '.join(inputs)}) => ({', '.join([f'float[{result}] y', *outputs])}) {{ {body} }}", **constants
        )

    def _epilogue(self, lines, inputs, constant, value, activation, geometry, row) -> str:
        if self.scale != "none":
            constant("scale", 1, self.outputs, 1, 1) if self.scale == "constant" else inputs.append(f"{row} scale")
            lines.append(f"cs = Mul({value}, scale)")
            value = "cs"
        if self.mean:
            lines.append(f"p = Abs({activation}) m = ReduceMean(p, axes)")
            lines.append(f"k = Conv<{geometry}>(m, {constant('filter', 1, 1, *self.kernel)}) ck = Mul(k, {value})")
            value = "ck"
        if self.bias:
            lines.append(f"cb = Add({value}, {constant('bias', 1, self.outputs, 1, 1)})")
            value = "cb"
        if self.shortcut and self.channels == self.outputs and self.size == (self.height, self.width):
            lines.append(f"gx = Mul({constant('gain', 1)}, {activation}) cx = Add({value}, gx)")
            value = "cx"
        if self.row:
            inputs.append(f"{row} e")
            lines.append(f"ce = Add(e, {value})")
            value = "ce"
        return value


@st.composite
def layers(draw, low_bit):
    flag = st.booleans()
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    channels = draw(st.sampled_from([1, 3, 8, 24, 63, 64, 65, 70]))
    return Layer(
        low_bit,
        channels,
        draw(st.one_of(st.just(channels), st.integers(1, 9))),
        draw(st.integers(kernel[0], 7)),
        draw(st.integers(kernel[1], 7)),
        kernel,
        draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        draw(st.tuples(*[st.integers(0, 2)] * 4)),
        *(draw(flag), draw(flag)),
        draw(st.sampled_from(["constant", "constant", "input", "none"])),
        *(draw(flag), draw(flag), draw(flag)),
        draw(st.integers(0, 7)) == 0,
        draw(st.integers(0, 3)) == 0,
        draw(st.integers(0, 7)) == 0,
        draw(st.integers(0, 3)) == 0,
        draw(st.integers(0, 2**16)),
    )


SINGLE = Layer(
    "W1A1",
    1,
    1,
    1,
    1,
    (1, 1),
    (1, 1),
    (0,) * 4,
    False,
    False,
    "constant",
    *[False, True, True, False, True, False, False],
    0,
)
"""One pixel, one channel: every transpose and reshape is a no-op that `Simplify` must not find later."""


@SETTINGS
@example(SINGLE)
@given(layers("W1A1"))
def test_random_w1a1_layers_survive_every_fusion(layer):
    ops = survive(layer.model(), layer.seed)
    assert ("BinaryConv" in ops) == layer.has_kernel


@SETTINGS
@given(layers("W1A4"))
def test_random_w1a4_layers_survive_every_fusion(layer):
    ops = survive(layer.model(), layer.seed)
    assert ("BinaryWeightConv" in ops) == layer.has_kernel
