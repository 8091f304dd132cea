"""Chains of calls that run strip by strip give the bits that the calls give one after another."""

import time

import numpy as np
import onnx
import pytest
from elsewhere import need_machine

import edgedm
from edgedm.bench.footprint import live_bytes
from edgedm.bundle import load
from edgedm.lower import strips
from edgedm.lower.importer import import_graph
from edgedm.lower.plan import Plan, make_plan
from edgedm.lower.tensors import Chain
from edgedm.lower.weights import Weights
from edgedm.runtime import LocalRunner, open_runner
from edgedm.targets.target import resolve

HEAD = '<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]>\n'
TOKENS, ROWS = 16, 8  # of attention in a digits model, and of a unit


@pytest.fixture(scope="module", params=["bidm-w1a1", "dilatequant-w4a4"])
def pair(request, tmp_path_factory):
    """A zoo model compiled as it is, and with every attention in strips."""
    folder = tmp_path_factory.mktemp("strips")
    edgedm.export(f"zoo:digits-{request.param}", folder / "model.onnx")
    edgedm.optimize(folder / "model.onnx", folder / "deploy.onnx")
    edgedm.compile(folder / "deploy.onnx", folder / "whole.bundle", cache=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "LEAST_BYTES", 0)
        patch.setattr(strips, "STRIP_BYTES", ROWS * TOKENS * 4)
        edgedm.compile(folder / "deploy.onnx", folder / "strips.bundle", cache=False)
    return folder


def test_every_attention_is_a_chain_from_product_to_product(pair):
    whole, cut = (load(pair / f"{name}.bundle").manifest for name in ("whole", "strips"))
    assert all(node.strips is None for node in whole.nodes)
    softmaxes = [node for node in cut.nodes if node.op == "Softmax"]
    assert softmaxes and all(node.strips is not None for node in softmaxes)
    for softmax in softmaxes:
        chain = [node for node in cut.nodes if node.graph == "step" and node.strips == softmax.strips]
        assert chain[0].op in ("MatMul", "QuantMatMul") and chain[-1].op == chain[0].op
        assert [node.index for node in chain] == list(range(chain[0].index, chain[0].index + len(chain)))
        assert softmax.strips.strips == TOKENS // ROWS
        assert all(each.outputs[0].source == "strips" for each in chain[:-1])
        assert sum(node.macs for node in chain) == sum(whole.nodes[node.index].macs for node in chain)


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_not_a_bit_differs_with_any_number_of_threads(pair, threads):
    images = []
    for name in ("whole", "strips"):
        with LocalRunner(load(pair / f"{name}.bundle"), threads, lanes=1) as runner:
            runner.prepare(3, eta=1.0)
            images.append(runner.sample(2, seed=5))
    assert images[0].tobytes() == images[1].tobytes()


def test_a_call_alone_gives_what_it_gives_whole_and_leaves_the_session_as_it_was(pair):
    rng = np.random.default_rng(0)
    whole, cut = (load(pair / f"{name}.bundle") for name in ("whole", "strips"))
    with LocalRunner(whole, 1, lanes=1) as one, LocalRunner(cut, 2, lanes=1) as other:
        other.prepare(2)
        before = other.sample(1, seed=1)
        for ours, theirs in zip(whole.manifest.nodes, cut.manifest.nodes, strict=True):
            if theirs.strips is None:
                continue
            given = [each for each in ours.inputs if each.source != "weights"]
            inputs = [
                rng.integers(0, 16, each.shape).astype(each.dtype)
                if each.dtype == "uint8"
                else rng.uniform(0.05, 1.0, each.shape).astype(each.dtype)
                for each in given
            ]
            results = [runner.run_node(node, inputs) for runner, node in ((one, ours), (other, theirs))]
            assert [each.tobytes() for each in results[0]] == [each.tobytes() for each in results[1]]
            assert np.ptp(results[0][0]) > 0
        assert other.sample(1, seed=1).tobytes() == before.tobytes()


def test_every_call_of_a_chain_has_its_share_of_the_time_that_the_chain_took(pair):
    bundle = load(pair / "strips.bundle")
    with LocalRunner(bundle, 2, lanes=1) as runner:
        runner.prepare(2)
        started = time.perf_counter_ns()
        times = runner.profile(0, np.zeros(bundle.manifest.image_shape, np.float32), 3)
        took = time.perf_counter_ns() - started
    steps = [node for node in bundle.manifest.nodes if node.graph == "step"]
    assert times.shape == (3, len(steps)) and (times > 0).all()
    assert times.sum() <= took  # two tasks at a time count once


def test_every_level_of_verification_takes_it(pair):
    checkpoint = "zoo:digits-bidm-w1a1" if "BinaryConv" in _ops(pair) else "zoo:digits-dilatequant-w4a4"
    levels = ("op", "pass", "layer", "step", "trajectory")
    outcome = edgedm.verify(pair / "strips.bundle", checkpoint, levels=levels, steps=2)
    assert outcome.ok, outcome.details


def test_the_arena_has_room_for_what_is_in_strips_and_no_more(pair):
    for name in ("whole", "strips"):
        manifest = load(pair / f"{name}.bundle").manifest
        assert live_bytes(manifest) <= manifest.arena_bytes <= 1.1 * live_bytes(manifest)


def _ops(pair) -> set[str]:
    return {node.op for node in load(pair / "strips.bundle").manifest.nodes}


def plan(text: str, **constants: np.ndarray) -> Plan:
    model = onnx.parser.parse_model(HEAD + text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(each, name) for name, each in constants.items())
    target = resolve("x86-64-v3")
    return make_plan(*import_graph(model, target), Weights(), 0, target)


def attention(heads: int = 4, m: int = 512, n: int = 512, k: int = 32, more: str = "", outputs: str = "") -> str:
    return f"""g (float[1,{heads},{m},{k}] q, float[1,{heads},{k},{n}] k, float[1,{heads},{n},{k}] v)
      => (float[1,{heads},{m},{k}] y{outputs}) {{
      s = MatMul (q, k)
      p = Softmax <axis = -1> (s)
      y = MatMul (p, v)
      {more}
    }}"""


def test_large_scores_are_cut_into_as_many_rows_as_fit_and_divide_them():
    assert plan(attention()).chains == [Chain(0, 3, 4, 8, 8)]
    assert plan(attention(heads=1, m=384, n=768)).chains == [Chain(0, 3, 1, 12, 8)]
    assert plan(attention(heads=1, m=192, n=1536)).chains == [Chain(0, 3, 1, 12, 8)]
    made = plan(attention(heads=16, m=128, n=128))
    assert made.chains == [Chain(0, 3, 16, 1, 8)]  # a head is a unit
    assert made.arena_bytes == 2 * 8 * 128 * 128 * 4


def rows_of(*ops: str) -> str:
    """A product, `ops` one after another, and a product."""
    lines = [f"x{number + 1} = {op} (x{number})" for number, op in enumerate(ops)]
    return f"""g (float[1,4,512,32] q, float[1,4,32,512] k, float[1,4,512,32] v) => (float[1,4,512,32] y) {{
      x0 = MatMul (q, k)
      {chr(10).join(lines)}
      y = MatMul (x{len(ops)}, v)
    }}"""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(rows_of(), id="no softmax"),
        pytest.param(rows_of(*9 * ["Softmax <axis = -1>"]), id="nine times softmax"),
        pytest.param(rows_of("Softmax <axis = -1>", "Relu"), id="another op between"),
        pytest.param(attention(heads=1, m=256, n=256), id="small"),
        pytest.param(attention(m=509), id="a prime number of rows"),
        pytest.param(attention(m=520, n=512, k=1), id="pieces that begin anywhere"),
        pytest.param(attention(more="other = Relu (p)", outputs=", float[1,4,512,512] other"), id="read twice"),
        pytest.param(attention(outputs=", float[1,4,512,512] s"), id="scores are an output"),
    ],
)
def test_what_cannot_be_cut_or_would_not_pay_stays_whole(text):
    assert plan(text).chains == []


def test_operands_for_all_heads_stay_whole():
    text = """g (float[1,4,512,32] q, float[1,4,512,32] v) => (float[1,4,512,32] y) {
      s = MatMul (q, k)
      p = Softmax <axis = -1> (s)
      y = MatMul (p, v)
    }"""
    assert plan(text, k=np.ones((1, 1, 32, 512), np.float32)).chains == []


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cortex-a53", "cortex-a76", "armv7+neon", "riscv64", "wasm32+simd128"])
def test_not_a_bit_differs_on_another_machine(pair, target, tmp_path, monkeypatch):
    need_machine(target)
    edgedm.compile(pair / "deploy.onnx", tmp_path / "whole.bundle", target=target, cache=False)
    monkeypatch.setattr(strips, "LEAST_BYTES", 0)
    monkeypatch.setattr(strips, "STRIP_BYTES", ROWS * TOKENS * 4)
    edgedm.compile(pair / "deploy.onnx", tmp_path / "strips.bundle", target=target, cache=False)
    images = []
    for name in ("whole", "strips"):
        with open_runner(load(tmp_path / f"{name}.bundle")) as runner:
            runner.prepare(3)
            images.append(runner.sample(1, seed=5))
    assert images[0].tobytes() == images[1].tobytes()
    assert any(node.strips for node in load(tmp_path / "strips.bundle").manifest.nodes)
