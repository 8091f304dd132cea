"""Faults planted on purpose: each changes what some op, sampler or graph gives, and `verify` has to find every one.

A mutant names the model that it is planted in, the part that it breaks, and the level that finds it. Levels run in the
order in which `verify` runs them; the one that is named is the first that does. `scripts/mutants.py` writes the table.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from onnx import numpy_helper

from edgedm.bundle import Manifest, Node, Operand
from edgedm.targets.kernels import epilogue, mathematics, norm, pack, quantize
from edgedm.targets.kernels.builder import cast, const, where
from edgedm.targets.kernels.dot_image import Image
from edgedm.targets.kernels.tiles import Border

LAYER = "mid_block.resnets.1.conv2"
Weights = np.ndarray
Patch = Callable[[pytest.MonkeyPatch], None]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Mutant:
    """`part`: graph (an ONNX file), weights (what the kernels read), kernel, or runtime (the C that ships)."""

    name: str
    model: str
    part: str
    level: str
    plant: Any = None  # weights: edit(weights, manifest) -> node; graph: edit(proto, arrays)
    op: str = ""  # kernel
    module: str = ""  # of the kernel, where not any will do
    source: str = ""  # runtime
    old: str = ""
    new: str = ""


# --- weights: constants of a bundle ---------------------------------------------------------------------------------


def operand_of(manifest: Manifest, name: str) -> tuple[Node, Operand]:
    """The constant `name` and a kernel call that reads it."""
    return next((n, o) for n in manifest.nodes for o in n.inputs if o.name == name and o.source == "weights")


def view(weights: Weights, operand: Operand) -> np.ndarray:
    """The numbers of a constant, flat, in place."""
    size = int(np.prod(operand.shape)) * np.dtype(operand.dtype).itemsize
    return weights[operand.offset : operand.offset + size].view(operand.dtype)


def nth(manifest: Manifest, op: str, number: int) -> Node:
    """A call of an op in the step graph."""
    return [node for node in manifest.nodes if node.op == op and node.graph == "step"][number]


def one_weight_bit(weights: Weights, manifest: Manifest) -> Node:
    node = nth(manifest, "BinaryConv", 3)
    weights[node.inputs[1].offset + 5] ^= 1 << 3
    return node


def words_in_another_order(weights: Weights, manifest: Manifest) -> Node:
    node = nth(manifest, "BinaryConv", 5)
    words = view(weights, node.inputs[1])
    words[[0, 1]] = words[[1, 0]]
    return node


def one_weight_code(weights: Weights, manifest: Manifest) -> Node:
    node, operand = operand_of(manifest, f"{LAYER}.codes.last")
    weights[operand.offset + 5] ^= 1
    return node


def sign_of_zero(weights: Weights, manifest: Manifest) -> Node:
    node = nth(manifest, "PackBits", 0)
    thresholds = view(weights, node.inputs[1])
    thresholds[:] = np.nextafter(thresholds, np.float32(-np.inf))  # x + threshold > 0 in place of >= 0
    return node


def channels_of_a_dilation(weights: Weights, manifest: Manifest) -> Node:
    node, operand = operand_of(manifest, f"{LAYER}.dilation.divisor")
    dilation = view(weights, operand)
    dilation[:] = np.roll(dilation, 1)
    return node


def a_tenth_of_one_dilation(weights: Weights, manifest: Manifest) -> Node:
    node, operand = operand_of(manifest, f"{LAYER}.dilation.divisor")
    view(weights, operand)[3] *= np.float32(1.1)
    return node


def vector(role: int, op: str) -> Callable[[Weights, Manifest], Node]:
    """Move a vector of a kernel's epilogue by one channel."""

    def edit(weights: Weights, manifest: Manifest) -> Node:
        for node in manifest.nodes:
            if node.op != op or node.graph != "step":
                continue
            found = [
                each
                for each in node.inputs
                if each.source == "weights" and each.dtype == "float32" and max(each.shape, default=1) > 4
            ]
            if len(found) > role and len(set(view(weights, found[role]))) > 2:
                values = view(weights, found[role])
                values[:] = np.roll(values, 1)
                return node
        raise AssertionError(f"no {op} has {role + 1} vectors")

    return edit


def two_channels_of_a_norm(weights: Weights, manifest: Manifest) -> Node:
    node = nth(manifest, "GroupNormSilu", 0)
    gamma = view(weights, next(each for each in node.inputs if each.source == "weights" and len(each.shape) == 1))
    gamma[[0, 1]] = gamma[[1, 0]] if gamma[0] != gamma[1] else gamma[[0, 1]] * np.float32(1.5)
    return node


def mix_of_the_next_timesteps(weights: Weights, _manifest: Manifest) -> None:
    table = tiny.checkpoint("bidm").module.cache_coefficients.detach().numpy()
    at = weights.tobytes().index(table.tobytes())
    weights[at : at + table.nbytes] = np.roll(table, 1, axis=0).reshape(-1).view(np.uint8)


# --- kernels: what generates them -----------------------------------------------------------------------------------


def half_up(patch: pytest.MonkeyPatch) -> None:
    nearest = mathematics.nearest

    def rounded(x: Any, lanes: int) -> Any:
        shifted = x + const(0.5, "float32", lanes)
        whole = nearest(shifted, lanes)
        return whole - cast(cast(whole, "float32", lanes) > shifted, "int32", lanes)

    patch.setattr(mathematics, "nearest", rounded)


def no_padding_correction(patch: pytest.MonkeyPatch) -> None:
    missing = Border.missing_taps
    patch.setattr(Border, "missing_taps", lambda self: [(number, ()) for number, _ in missing(self)])


def padding_with_zeros(patch: pytest.MonkeyPatch) -> None:
    fill = Image.fill
    patch.setattr(Image, "fill", lambda self, zero, image, pixel: fill(self, zero * 0, image, pixel))


def short_sums(patch: pytest.MonkeyPatch) -> None:
    apply = epilogue.Epilogue.apply

    def cut(self: Any, acc: Any, buffers: Any, row: Any, channel: Any, lanes: int) -> Any:
        short = cast(cast(cast(acc, "int32", lanes), "int16", lanes), "float32", lanes)
        return apply(self, short, buffers, row, channel, lanes)

    patch.setattr(epilogue.Epilogue, "apply", cut)


def without(*terms: str) -> Patch:
    """An epilogue that forgets some of its terms."""

    def patch_it(patch: pytest.MonkeyPatch) -> None:
        apply = epilogue.Epilogue.apply

        def forgetful(self: Any, *arguments: Any) -> Any:
            kept = {name: term for name, term in self.terms.items() if name not in terms}
            return apply(replace(self, terms=kept), *arguments)

        patch.setattr(epilogue.Epilogue, "apply", forgetful)

    return patch_it


def addend_before_the_multiplier(patch: pytest.MonkeyPatch) -> None:
    apply = epilogue.Epilogue.apply

    def early(self: Any, acc: Any, buffers: Any, row: Any, channel: Any, lanes: int) -> Any:
        if "addend" not in self.terms:
            return apply(self, acc, buffers, row, channel, lanes)
        acc = acc + self._load("addend", buffers["addend"], row, channel, lanes)
        kept = {name: term for name, term in self.terms.items() if name != "addend"}
        return apply(replace(self, terms=kept), acc, buffers, row, channel, lanes)

    patch.setattr(epilogue.Epilogue, "apply", early)


def clip_one_code_short(patch: pytest.MonkeyPatch) -> None:
    codes = quantize.Uniform.codes
    patch.setattr(quantize.Uniform, "codes", lambda self, index: codes(replace(self, top=self.top - 1), index))


def no_epsilon(patch: pytest.MonkeyPatch) -> None:
    statistics = norm.Norm.statistics
    patch.setattr(norm.Norm, "statistics", lambda self, *rest: statistics(replace(self, epsilon=0.0), *rest))


def relu_for_silu(patch: pytest.MonkeyPatch) -> None:
    def relu(v: Any, lanes: int, fused: bool) -> Any:
        del fused
        zero = const(0.0, "float32", lanes)
        return where(v > zero, v, zero)

    patch.setattr(norm, "silu", relu)


def mean_of_signed_values(patch: pytest.MonkeyPatch) -> None:
    class Tirx:
        """The module without magnitudes."""

        def __getattr__(self, name: str) -> Any:
            return (lambda value: value) if name == "abs" else getattr(real, name)

    real = pack.tirx
    patch.setattr(pack, "tirx", Tirx())


# --- graphs: ONNX files ---------------------------------------------------------------------------------------------


def two_channels_swapped(_proto: onnx.ModelProto, arrays: Arrays) -> None:
    codes = arrays[f"{LAYER}.codes"]
    codes[[0, 1]] = codes[[1, 0]]


def table_row_shifted(_proto: onnx.ModelProto, arrays: Arrays) -> None:
    table = arrays[f"{LAYER}.activation.table"]
    table[:] = np.roll(table, 1, axis=0)


def edge_one_timestep_off(_proto: onnx.ModelProto, arrays: Arrays) -> None:
    next(array for name, array in arrays.items() if name.endswith("edges"))[2] += 1


def nodes(proto: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type == kind]


def norm_epsilon(proto: onnx.ModelProto, _arrays: Arrays) -> None:
    node = next(n for n in proto.graph.node if any(a.name == "epsilon" for a in n.attribute))
    next(a for a in node.attribute if a.name == "epsilon").f *= 1000


def state_of_the_other_tap(proto: onnx.ModelProto, _arrays: Arrays) -> None:
    """The state that leaves holds what came in: a stale one is used again at the next step."""
    after = next(item.name for item in proto.graph.output if item.name.endswith(".next"))
    before = after.removesuffix(".next")
    producer = next(node for node in proto.graph.node if after in node.output)
    for number, name in enumerate(producer.output):
        if name == after:
            producer.output[number] = f"{after}.made"
    for node in proto.graph.node:
        for number, name in enumerate(node.input):
            if name == after:
                node.input[number] = f"{after}.made"
    proto.graph.node.append(onnx.helper.make_node("Identity", [before], [after], name="stale"))


def sine_and_cosine_swapped(proto: onnx.ModelProto, _arrays: Arrays) -> None:
    (sine,), (cosine,) = nodes(proto, "Sin"), nodes(proto, "Cos")
    sine.op_type, cosine.op_type = "Cos", "Sin"


def skip_left_out(proto: onnx.ModelProto, _arrays: Arrays) -> None:
    """A residual connection that adds nothing: the sum of two computed values of one shape becomes one of them."""
    made = {name for node in proto.graph.node for name in node.output}
    sums = [node for node in nodes(proto, "Add") if all(name in made for name in node.input)]
    sums[-1].op_type = "Identity"
    del sums[-1].input[1]


def write_back(proto: onnx.ModelProto, edit: Callable[[onnx.ModelProto, Arrays], None]) -> None:
    """Let `edit` change nodes, or arrays in place."""
    tensors = {item.name: item for item in proto.graph.initializer}
    arrays = {name: numpy_helper.to_array(item).copy() for name, item in tensors.items()}
    before = {name: array.copy() for name, array in arrays.items()}
    edit(proto, arrays)
    for name, array in arrays.items():
        if array.tobytes() != before[name].tobytes():
            tensors[name].CopyFrom(numpy_helper.from_array(array, name))


W1A1, W4A4 = "bidm", "w4a4"
MUTANTS = [
    Mutant("one weight bit flipped", W1A1, "weights", "layer", one_weight_bit),
    Mutant("packed words in another order", W1A1, "weights", "layer", words_in_another_order),
    Mutant("sign(0) is -1: thresholds a unit in the last place lower", W1A1, "weights", "layer", sign_of_zero),
    Mutant("mixing coefficients of the next timesteps", W1A1, "weights", "layer", mix_of_the_next_timesteps),
    Mutant("multipliers moved by one channel", W1A1, "weights", "layer", vector(0, "BinaryConv")),
    Mutant("two channels of a norm swapped", W1A1, "weights", "layer", two_channels_of_a_norm),
    Mutant("one weight code changed by 1", W4A4, "weights", "layer", one_weight_code),
    Mutant("dilations moved by one channel", W4A4, "weights", "layer", channels_of_a_dilation),
    Mutant("one dilation a tenth larger", W4A4, "weights", "layer", a_tenth_of_one_dilation),
    Mutant("multipliers or biases moved by one channel", W4A4, "weights", "layer", vector(0, "QuantConv")),
    Mutant("correction for zero padding dropped", W1A1, "kernel", "op", no_padding_correction, op="BinaryConv"),
    Mutant("a norm without its epsilon", W1A1, "kernel", "op", no_epsilon, op="GroupNormSilu"),
    Mutant("ReLU in place of SiLU", W1A1, "kernel", "op", relu_for_silu, op="GroupNormSilu"),
    Mutant(
        "mean of signed values in place of magnitudes",
        W1A1,
        "kernel",
        "op",
        mean_of_signed_values,
        op="PackBitsMeanAbs",
    ),
    Mutant("ties rounded up", W4A4, "kernel", "op", half_up, op="QuantizeUniform"),
    Mutant("ties rounded up behind a norm", W4A4, "kernel", "op", half_up, op="GroupNormSiluQuantizeUniform"),
    Mutant("the largest code never given", W4A4, "kernel", "op", clip_one_code_short, op="QuantizeUniform"),
    Mutant("padding with 0 in place of the zero point", W4A4, "kernel", "op", padding_with_zeros, op="QuantConv"),
    Mutant("accumulator cut to 16 bits", W4A4, "kernel", "op", short_sums, op="QuantConv", module="conv_out"),
    Mutant("residual left out", W4A4, "kernel", "op", without("residual"), op="QuantConv"),
    Mutant("bias added before the multiplier", W4A4, "kernel", "op", addend_before_the_multiplier, op="QuantConv"),
    Mutant("two output channels swapped", W4A4, "graph", "weights", two_channels_swapped),
    Mutant("table shifted by one row", W4A4, "graph", "weights", table_row_shifted),
    Mutant("a timestep bin that begins one timestep late", W4A4, "graph", "weights", edge_one_timestep_off),
    Mutant("a norm's epsilon a thousand times larger", W4A4, "graph", "step", norm_epsilon),
    Mutant("sine and cosine of the timestep swapped", W4A4, "graph", "step", sine_and_cosine_swapped),
    Mutant("a residual connection left out", W4A4, "graph", "step", skip_left_out),
    Mutant("stale state passed on", W1A1, "graph", "step", state_of_the_other_tap),
    Mutant(
        "carried state forgotten",
        W1A1,
        "runtime",
        "step",
        source="session.c",
        old="  lane->current = 1 - lane->current;\n",
        new="",
    ),
    Mutant(
        "stale state read at the next step",
        W1A1,
        "runtime",
        "step",
        source="session.c",
        old="uint8_t *next = lane->states[pass][1 - lane->current];",
        new="uint8_t *next = lane->states[pass][lane->current];",
    ),
    Mutant(
        "state leaked from one image to the next",
        W1A1,
        "runtime",
        "trajectory",
        source="session.c",
        old="  *lane->has_state = 0.0F;\n",
        new="",
    ),
    Mutant(
        "has_state never set",
        W1A1,
        "runtime",
        "trajectory",
        source="session.c",
        old="  lane->current = 1 - lane->current;\n  *lane->has_state = 1.0F;\n",
        new="  lane->current = 1 - lane->current;\n",
    ),
    Mutant(
        "both predictions of guidance share one state",
        W1A1,
        "runtime",
        "trajectory",
        source="session.c",
        old="return lane->states[pass][lane->current] + ",
        new="return lane->states[0][lane->current] + ",
    ),
    Mutant(
        "a step takes the row of the step before",
        W1A1,
        "runtime",
        "trajectory",
        source="session.c",
        old="(size_t)step * edm_compiled.row_bytes + port->index",
        new="(size_t)(step ? step - 1 : 0) * edm_compiled.row_bytes + port->index",
    ),
    Mutant(
        "the label ignored",
        W1A1,
        "runtime",
        "step",
        source="session.c",
        old="*lane->label = session->labels[pass];\n  for (uint32_t i = 0; i < graph->input_count; ++i) {",
        new="*lane->label = 0;\n  for (uint32_t i = 0; i < graph->input_count; ++i) {",
    ),
    Mutant(
        "noise counter of a step used again",
        W1A1,
        "runtime",
        "trajectory",
        source="drawing.c",
        old="(uint32_t)step + 1, floats",
        new="(uint32_t)first + 1, floats",
    ),
    Mutant(
        "all images from one counter",
        W1A1,
        "runtime",
        "trajectory",
        source="noise.c",
        old="{(uint32_t)(i / 4), draw, image, 0}",
        new="{(uint32_t)(i / 4), draw, image & 0u, 0}",
    ),
    Mutant(
        "the seed's upper half ignored",
        W1A1,
        "runtime",
        "trajectory",
        source="noise.c",
        old="key1 = (uint32_t)(seed >> 32)",
        new="key1 = (uint32_t)(seed >> 63)",
    ),
    Mutant(
        "x0 not clipped",
        W1A1,
        "runtime",
        "trajectory",
        source="sampler.c",
        old="  if (clip > 0.0F) estimate =",
        new="  if (clip < 0.0F) estimate =",
    ),
    Mutant(
        "the two predictions of guidance exchanged",
        W1A1,
        "runtime",
        "trajectory",
        source="sampler.c",
        old="unconditional[i] + guidance * (conditional[i] - unconditional[i])",
        new="conditional[i] + guidance * (unconditional[i] - conditional[i])",
    ),
    Mutant(
        "the second order of DPM-Solver++ added, not subtracted",
        W1A1,
        "runtime",
        "trajectory",
        source="sampler.c",
        old="x[i] = x[i] + c.to_trend *",
        new="x[i] = x[i] - c.to_trend *",
    ),
    Mutant(
        "an image that is drawn step by step begins at the next image's noise",
        W1A1,
        "runtime",
        "trajectory",
        source="drawing.c",
        old="&session->lanes[0], options, 0, session->first);",
        new="&session->lanes[0], options, 1, session->first);",
    ),
    Mutant(
        "an image of the second lane takes another's noise",
        W1A1,
        "runtime",
        "trajectory",
        source="sample.c",
        old="edm_begin_image(session, lane, job->options, index, job->first);",
        new="edm_begin_image(session, lane, job->options, lane_number ? index ^ 1u : index, job->first);",
    ),
    Mutant(
        "half of the noise that eta asks for",
        W1A1,
        "runtime",
        "trajectory",
        source="sampler.c",
        old="row->to_noise = deviation;\n}\n\nstatic void ddpm",
        new="row->to_noise = 0.5F * deviation;\n}\n\nstatic void ddpm",
    ),
    Mutant(
        "noise of an image to start from not scaled",
        W1A1,
        "runtime",
        "trajectory",
        source="sampler.c",
        old="x[i] = level * image[i] + deviation * x[i];",
        new="x[i] = level * image[i] + deviation + x[i];",
    ),
]
"""All of them."""
