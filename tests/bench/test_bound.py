"""The bound of a step by hand: which calls count, with what, and the shares that come out."""

import pytest
import tiny_model

from edgedm.bench.bound import FMA, XOR_POPCOUNT, arithmetic, multiplications, step_needs
from edgedm.bench.breakdown import bench_calls, call_rows, footprints, groups
from edgedm.bench.machine import LARGEST, SMALLEST, footprint_class, level_of
from edgedm.bundle import Manifest, Node, Operand, Port, Strips, load
from edgedm.errors import InvalidModelError


def operand(source: str, *shape: int, offset: int = 0) -> Operand:
    return Operand(name="", shape=shape, dtype="float32", source=source, offset=offset)


def node(index: int, op: str, family: str, macs: int, inputs: list[Operand], outputs: list[Operand]) -> Node:
    fields = {"graph": "step", "kernel": "k", "node": "", "module": f"m{index}"}
    return Node(index=index, op=op, family=family, macs=macs, inputs=inputs, outputs=outputs, scratch=[], **fields)


def manifest(*nodes: Node) -> Manifest:
    """A convolution, a norm and a mix with carried state: input 1 and output 1."""
    states = [
        Port(name="x", role="x", shape=(4,), dtype="float32"),
        Port(name="s", role="state", shape=(4,), dtype="float32"),
    ]
    whole = load(tiny_model.folder() / "model.bundle").manifest
    return whole.model_copy(update={"nodes": list(nodes), "inputs": {"step": states}, "outputs": {"step": states}})


CONV = node(
    0, "BinaryConv", "bitserial 8x64", 6000, [operand("arena", 10), operand("weights", 99)], [operand("arena", 20)]
)
NORM = node(1, "GroupNormSilu", "norm 16", 0, [operand("arena", 20), operand("weights", 3)], [operand("arena", 20)])
MIX = node(2, "fused", "relax", 0, [operand("input", 5, offset=1)], [operand("output", 5, offset=1)])
RESIZE = node(3, "UpsampleNearest", "resize 16", 0, [operand("arena", 5)], [operand("arena", 20)])
IMAGE = node(4, "fused", "relax", 0, [operand("input", 5, offset=0)], [operand("output", 5, offset=0)])


def test_macs_count_by_kind_and_only_necessary_traffic_by_bytes():
    needs = step_needs(manifest(CONV, NORM, MIX, RESIZE, IMAGE))
    assert [need.kind for need in needs] == [XOR_POPCOUNT, "", "", "", ""]
    assert [need.macs for need in needs] == [6000, 0, 0, 0, 0]
    assert [need.moved for need in needs] == [4 * 30, 4 * 40, 4 * 10, 4 * 25, 4 * 10]  # constants move nothing
    assert [need.streamed for need in needs] == [0, 160, 40, 0, 0]  # a norm and the carried state


def test_what_runs_strip_by_strip_moves_at_the_rate_of_the_cache_that_holds_a_strip():
    softmax = node(0, "Softmax", "softmax 16", 0, [operand("strips", 1, 4, 8, 8)], [operand("strips", 1, 4, 8, 8)])
    strips = Strips(first=0, heads=4, strips=2, tasks=2)
    (need,) = step_needs(manifest(softmax.model_copy(update={"strips": strips})))
    assert (need.streamed, need.footprint) == (2048, 2048 // 8)
    assert need.seconds({}, float) == 8.0


def test_streams_are_measured_at_every_footprint_that_a_call_has_also_of_a_strip():
    x = operand("strips", 1, 4, 1024, 1024)
    call = node(0, "Softmax", "softmax 16", 0, [x], [x])
    strips = Strips(first=0, heads=4, strips=32, tasks=2)
    needs = step_needs(manifest(call.model_copy(update={"strips": strips}), call))
    assert footprints(needs) == [1 << 18, 1 << 25]
    rows = call_rows(needs, [1.0, 1.0], {str(1 << 18): 2e9, str(1 << 25): 1e9})
    assert [row.bound_us for row in rows] == [needs[0].streamed / 2e3, needs[0].streamed / 1e3]


def test_the_bound_is_macs_over_peak_plus_bytes_over_bandwidth():
    conv, norm, mix, resize, _ = step_needs(manifest(CONV, NORM, MIX, RESIZE, IMAGE))
    peaks, asked = {XOR_POPCOUNT: 2000.0}, []

    def bandwidth(footprint: int) -> float:
        asked.append(footprint)
        return 80.0

    assert conv.seconds(peaks, bandwidth) == 3.0
    assert norm.seconds(peaks, bandwidth) == 2.0
    assert mix.seconds(peaks, bandwidth) == 0.5
    assert resize.seconds(peaks, bandwidth) == 0.0
    assert asked == [160, 40]


def test_rows_hold_each_call_against_its_bound_and_groups_add_them_up():
    needs = step_needs(manifest(CONV, NORM, MIX, RESIZE, IMAGE))
    limits = {XOR_POPCOUNT: 2000.0, str(SMALLEST): 80.0}
    rows = call_rows(needs, [4.0, 8.0, 1.0, 1.0, 1.0], limits)
    assert [row.share for row in rows] == [0.75, 0.25, 0.5, 0.0, 0.0]
    assert [row.kind for row in rows] == [XOR_POPCOUNT, "stream", "stream", "", ""]
    assert rows[0].module == "m0"
    summed = groups(rows)
    assert [(group["op"], group["calls"]) for group in summed][:3] == [
        ("GroupNormSilu", 1),
        ("BinaryConv", 1),
        ("fused", 2),
    ]
    fused = summed[2]
    assert (fused["us"], fused["bound_us"], fused["share"]) == (2e6, 0.5e6, 0.25)


@pytest.mark.parametrize(
    ("op", "family", "kind"),
    [
        ("BinaryWeightConv", "lookup-permute 16", "byte_shuffle"),
        ("BinaryWeightConv", "bitserial 8x64", "xor_popcount"),  # the kernel's own arithmetic comes before the op's
        ("BinaryWeightConv", "generic", "byte_shuffle"),
        ("QuantConv", "dot 16", "int8_dot"),
        ("MatMul", "matmul 16", "fma"),
    ],
)
def test_the_kind_of_arithmetic_is_the_familys_or_else_the_ops(op, family, kind):
    assert arithmetic(node(0, op, family, 1, [], [operand("arena", 1)])) == kind


@pytest.mark.parametrize(
    ("family", "count"),
    [
        ("winograd-vnni 4x4 16 8x2", 1600),
        ("dot-vnni 4x4 16 8x2", 3600),
        ("bitserial 8x64 8x1", 3600),
        ("bitserial-planes 4x2 8x64 8x1", 8 * 3600),
        ("lookup-permute 4x1 16 8x2", 3600),
        ("lookup-permute 4x2 16 8x2", 2 * 3600),
    ],
)
def test_products_are_those_of_the_algorithm(family, count):
    """Winograd has fewer than the convolution, planes take several passes."""
    assert multiplications(node(0, "QuantConv", family, 3600, [], [operand("arena", 1)])) == count


def test_macs_of_no_known_kind_are_refused_by_the_calls_name():
    with pytest.raises(InvalidModelError, match=r"call 7.*Fourier.*'m7'"):
        arithmetic(node(7, "Fourier", "transform", 1, [], [operand("arena", 1)]))


def test_footprints_are_powers_of_two_within_what_is_measured():
    assert footprint_class(1) == SMALLEST
    assert footprint_class(1 << 20) == 1 << 20
    assert footprint_class((1 << 20) + 1) == 1 << 21
    assert footprint_class(LARGEST * 8) == LARGEST
    assert level_of(1 << 50) == "memory"


def test_every_call_of_a_step_is_timed_and_the_parts_of_the_bound_add_up():
    bundle = tiny_model.folder() / "model.bundle"
    outcome = bench_calls(bundle, seconds=0.1)
    calls = outcome.details["calls"]
    step = [each for each in load(bundle).manifest.nodes if each.graph == "step"]
    assert [call["index"] for call in calls] == [each.index for each in step]
    assert {XOR_POPCOUNT, FMA, "stream"} == {call["kind"] for call in calls} - {""}
    figures = outcome.figures
    assert all(call["us"] > 0 for call in calls)
    parts = [figures[f"bound_ms.{kind}"] for kind in (XOR_POPCOUNT, FMA, "stream")]
    assert figures["bound_ms"] == pytest.approx(sum(parts))
    assert figures["calls_ms"] == pytest.approx(sum(call["us"] for call in calls) / 1e3)
    assert figures["over_bound"] == pytest.approx(figures["step_ms.edgedm.t1"] / figures["bound_ms"])
    assert figures["share"] == pytest.approx(1 / figures["over_bound"])
    mixed = [call for call in calls if call["kind"] == "stream" and call["op"] == "fused"]
    assert mixed  # the carried state
