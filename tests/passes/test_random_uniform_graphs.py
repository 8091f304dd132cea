"""Random layers and attention products on uniform grids through all fusions: geometry, widths, tables, readers."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pass_testing import graph, survive
from uniform_graphs import STORED, limits, looked_up, lookup_constants, quantised, table, weight

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def grid(rng: np.random.Generator, name: str, bits: int, heads: int, from_table: bool):
    """(lines, constants, step, zero) of a grid, constant or looked up."""
    if from_table:
        constants = {f"{name}_table": table(rng, bits, heads), **lookup_constants(heads)}
        return looked_up(name, bits, heads), constants, f"{name}_step", f"{name}_zero"
    row = table(rng, bits, heads)[0]
    step, zero = np.split(row, 2) if heads else row.reshape(2, 1)[:, 0]
    constants = {f"{name}_s": np.asarray(step, np.float32), f"{name}_z": np.asarray(zero).astype(STORED[bits])}
    return "", constants, f"{name}_s", f"{name}_z"


@dataclass(frozen=True)
class Layer:
    """One residual layer around a convolution of codes."""

    channels: int
    outputs: int
    height: int
    width: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    bits: int
    weight_bits: int
    norm: str  # none, norm or silu
    dilated: bool
    from_table: bool
    bias: bool
    row: bool
    shortcut: bool  # where shapes allow
    per_tensor: bool  # the weight has one step
    weight_is_input: bool
    groups: bool  # where shapes allow
    twice: bool  # the same weight on another activation, the same grid on another weight
    read_elsewhere: bool  # the quantised activation is read by a float op too
    seed: int

    @property
    def size(self) -> tuple[int, int]:
        top, left, bottom, right = self.pads
        high = (self.height + top + bottom - self.kernel[0]) // self.strides[0] + 1
        wide = (self.width + left + right - self.kernel[1]) // self.strides[1] + 1
        return high, wide

    @property
    def grouped(self) -> bool:
        return self.groups and self.channels % 2 == self.outputs % 2 == 0

    @property
    def has_kernel(self) -> bool:
        return not (self.weight_is_input or self.grouped)

    def model(self) -> ir.Model:
        rng = np.random.default_rng(self.seed)
        full, result = (
            f"1,{self.channels},{self.height},{self.width}",
            f"1,{self.outputs},{self.size[0]},{self.size[1]}",
        )
        geometry = f"strides={list(self.strides)}, pads={list(self.pads)}, group={2 if self.grouped else 1}"
        inputs, outputs = [f"float[{full}] x", "int64[1] timestep"], [f"float[{result}] y"]
        inner = self.channels // 2 if self.grouped else self.channels
        constants = weight(rng, self.weight_bits, self.outputs, inner, *self.kernel)
        constants |= limits(self.bits)
        if self.per_tensor:
            constants |= {name: constants[name][0] for name in ("ws", "wz")}
        value, lines = "x", []
        if self.norm != "none":
            groups = next(count for count in (4, 3, 2, 1) if self.channels % count == 0)
            constants |= {name: rng.standard_normal(self.channels).astype(np.float32) for name in ("gamma", "beta")}
            lines.append(f"n = GroupNormalization<num_groups={groups}>(x, gamma, beta)")
            lines.append("s = Sigmoid(n) a = Mul(s, n)" if self.norm == "silu" else "")
            value = "a" if self.norm == "silu" else "n"
        if self.dilated:
            constants["dilation"] = rng.uniform(0.3, 4, (self.channels, 1, 1)).astype(np.float32)
            lines.append(f"v = Div({value}, dilation)")
            value = "v"
        made, given_grid, step, zero = grid(rng, "t", self.bits, 0, self.from_table)
        constants |= given_grid
        bias = ""
        if self.bias:
            constants["b"], bias = rng.standard_normal(self.outputs).astype(np.float32), ", b"
        lines += [made, quantised("d", value, step, zero, self.bits), "u = DequantizeLinear<axis=0>(w, ws, wz)"]
        lines.append(f"c = Conv<{geometry}>(d, u{bias})")
        if self.weight_is_input:
            shape = ",".join(map(str, constants.pop("w").shape))
            inputs.append(f"uint8[{shape}] w")
            constants["wz"] = np.asarray(constants["wz"]).astype(np.uint8)
        if self.twice:
            lines += ["x2 = Neg(x)", quantised("d2", "x2", step, zero, self.bits), f"z = Conv<{geometry}>(d2, u)"]
            outputs.append(f"float[{result}] z")
        if self.read_elsewhere:
            lines.append("o = Neg(d)")
            outputs.append(f"float[{full}] o")
        result_name = self._epilogue(lines, inputs)
        lines.append(f"y = Identity({result_name})")
        text = f"g ({', '.join(inputs)}) => ({', '.join(outputs)}) {{ {' '.join(lines)} }}"
        return graph(text, **constants)

    def _epilogue(self, lines: list[str], inputs: list[str]) -> str:
        value = "c"
        if self.row:
            inputs.append(f"float[1,{self.outputs},1,1] e")
            lines.append(f"ce = Add(e, {value})")
            value = "ce"
        if self.shortcut and self.channels == self.outputs and self.size == (self.height, self.width):
            lines.append(f"cx = Add({value}, x)")
            value = "cx"
        return value


@st.composite
def layers(draw) -> Layer:
    flag, seldom = st.booleans(), st.integers(0, 5).map(lambda number: number == 0)
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    channels = draw(st.sampled_from([1, 3, 8, 15, 16, 33]))
    return Layer(
        channels,
        draw(st.one_of(st.just(channels), st.integers(1, 9))),
        draw(st.integers(kernel[0], 7)),
        draw(st.integers(kernel[1], 7)),
        kernel,
        draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        draw(st.tuples(*[st.integers(0, 2)] * 4)),
        draw(st.sampled_from([2, 4, 4, 6, 8])),
        draw(st.sampled_from([2, 4, 6, 8])),
        draw(st.sampled_from(["none", "norm", "silu"])),
        *(draw(flag) for _ in range(6)),
        *(draw(seldom) for _ in range(4)),
        draw(st.integers(0, 2**16)),
    )


@SETTINGS
@given(layers())
def test_random_layers_on_uniform_grids_survive_every_fusion(layer):
    ops = survive(layer.model(), layer.seed)
    assert ("QuantConv" in ops) == layer.has_kernel
    assert ("Conv" in ops) == (not layer.has_kernel)
    if layer.has_kernel and not layer.read_elsewhere:
        assert not {"Div", "QuantizeLinear", "DequantizeLinear", "TimestepLookup"} & set(ops)


@SETTINGS
@given(
    st.lists(st.sampled_from([2, 4, 6, 8]), min_size=2, max_size=2),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.tuples(*[st.integers(1, 6)] * 4),
    st.integers(0, 2**16),
)
def test_random_attention_products_survive_every_fusion(widths, flags, sizes, seed):
    turned, per_head, other_per_head, from_table, scaled = flags
    heads, rows, depth, columns = sizes
    rng = np.random.default_rng(seed)
    lines, constants = [], limits(*widths) | {"scale": np.array(0.42, np.float32)}
    shape = f"{columns},{depth}" if turned else f"{depth},{columns}"
    for name, bits, each in zip("ab", widths, (per_head, other_per_head), strict=True):
        made, given_grid, step, zero = grid(rng, f"{name}t", bits, heads if each else 0, from_table)
        constants |= given_grid
        value = f"m{name}" if scaled else name
        lines += [f"m{name} = Mul({name}, scale)" if scaled else "", made]
        lines.append(quantised(f"d{name}", value, step, zero, bits, 1 if each else None))
    lines.append("bt = Transpose<perm=[0,1,3,2]>(db) y = MatMul(da, bt)" if turned else "y = MatMul(da, db)")
    if not scaled:
        del constants["scale"]
    text = f"""g (float[1,{heads},{rows},{depth}] a, float[1,{heads},{shape}] b, int64[1] timestep)
        => (float[1,{heads},{rows},{columns}] y) {{ {" ".join(lines)} }}"""
    ops = survive(graph(text, **constants), seed)
    assert "QuantMatMul" in ops and "MatMul" not in ops
