"""The compiled tiny model against ONNX Runtime, and the C sampler against numpy with the model in between."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny_model

from edgedm.bundle import load
from edgedm.diffusion import NoiseSchedule
from edgedm.diffusion import sample as numpy_sample
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.ops import attach_functions
from edgedm.runtime import ExecRunner, LocalRunner
from edgedm.runtime.library import Library

SAME_FLOATS = 2e-5  # a dozen float32 operations on values of order 1, sums of up to 144 terms


@pytest.fixture(scope="module")
def runner(tiny_bundle):
    with LocalRunner(tiny_bundle) as made:
        yield made


@pytest.fixture(scope="module")
def reference(tiny_folder):
    return tiny_model.Reference(tiny_folder / "deploy.onnx")


def _x(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(("timestep", "label"), [(40, 0), (299, 1), (300, 2), (701, 0), (999, 1)])
def test_a_first_step_is_that_of_the_graph(runner, reference, timestep, label):
    want, want_state = reference.step(timestep, _x(), label, None)
    got, got_state = runner.step(timestep, _x(), None if label == tiny_model.NULL else label)
    np.testing.assert_allclose(got, want, atol=SAME_FLOATS, rtol=0)
    np.testing.assert_allclose(got_state["state.mid.next"], want_state, atol=SAME_FLOATS, rtol=0)


def test_carried_state_goes_in_and_comes_out(runner, reference):
    state = np.random.default_rng(3).standard_normal((1, 8, 8, 8)).astype(np.float32)
    want, want_state = reference.step(500, _x(), 1, state)
    got, got_state = runner.step(500, _x(), 1, {"state.mid": state})
    np.testing.assert_allclose(got, want, atol=SAME_FLOATS, rtol=0)
    np.testing.assert_allclose(got_state["state.mid.next"], want_state, atol=SAME_FLOATS, rtol=0)
    without, _ = runner.step(500, _x(), 1)
    assert not np.array_equal(without, got)


def test_a_trajectory_carries_its_state(runner, reference):
    timesteps = runner.prepare(10, label=0)
    state = None
    for step, timestep in enumerate(timesteps):
        want, state = reference.step(timestep, _x(step), 0, state)
        np.testing.assert_allclose(runner.run_step(step, _x(step)), want, atol=SAME_FLOATS, rtol=0)
    first = runner.run_step(0, _x())
    runner.reset()
    assert not np.array_equal(runner.run_step(0, _x()), first)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("ddpm", 0.0)])
def test_the_sampler_is_numpys_bit_for_bit(runner, sampler, eta):
    schedule = NoiseSchedule.from_config(tiny_model.CONFIG["noise_schedule"])
    runner.prepare(12, sampler, eta, label=1)
    images = runner.sample(2, seed=5)
    for image in range(2):
        runner.reset()
        want = numpy_sample(
            lambda x, _t, step: runner.run_step(step, x), schedule, (1, 8, 8), 12, sampler, eta, 5, image
        )
        assert want.tobytes() == images[image].tobytes()


def test_guidance_carries_two_states(tiny_bundle):
    schedule = NoiseSchedule.from_config(tiny_model.CONFIG["noise_schedule"])
    with LocalRunner(tiny_bundle) as guided, LocalRunner(tiny_bundle) as one, LocalRunner(tiny_bundle) as other:
        guided.prepare(9, label=1, guidance=1.8)
        one.prepare(9, label=1)
        other.prepare(9)
        got = guided.sample(1, seed=3)[0]
        want = numpy_sample(
            lambda x, _t, step: one.run_step(step, x),
            schedule,
            (1, 8, 8),
            9,
            seed=3,
            predict_unconditional=lambda x, _t, step: other.run_step(step, x),
            guidance=1.8,
        )
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("threads", [2, 3, 5, 40])
def test_threads_and_lanes_do_not_change_a_bit(runner, tiny_bundle, threads):
    runner.prepare(8, "ddpm", label=0)
    want = runner.sample(7, seed=1)
    for lanes in (0, 1):
        with LocalRunner(tiny_bundle, threads=threads, lanes=lanes) as parallel:
            parallel.prepare(8, "ddpm", label=0)
            assert parallel.sample(7, seed=1).tobytes() == want.tobytes()


def test_an_image_depends_on_its_number_only(runner):
    runner.prepare(6, label=1)
    five = runner.sample(5, seed=9)
    runner.prepare(6, label=1)
    assert runner.sample(2, seed=9, first_image=3).tobytes() == five[3:].tobytes()
    assert not np.array_equal(five[0], five[1])
    assert not np.array_equal(runner.sample(1, seed=10)[0], five[0])


def test_noise_is_numpys(runner):
    from edgedm.diffusion import normals

    assert runner.normals(4, 2, 1, 100).tobytes() == normals(4, 2, 1, 100).tobytes()


def test_every_kernel_call_alone_is_its_onnx_op(runner, tiny_bundle):
    """Feed each of our kernels random inputs and compare with the op's ONNX function under ONNX Runtime."""
    graph = ir.load(tiny_bundle / "golden" / "step.onnx")
    nodes = {node.name: node for node in graph.graph}
    rng = np.random.default_rng(0)
    for entry in (node for node in runner.manifest.nodes if node.graph == "step" and node.node):
        wanted = [operand for operand in entry.inputs if operand.source != "weights"]
        inputs = []
        for operand in wanted:
            if operand.dtype == "uint64":
                inputs.append(rng.integers(0, 256, operand.shape, dtype=np.uint64))  # 8 channels, zero padding
            else:
                inputs.append(rng.standard_normal(operand.shape).astype(operand.dtype))
        got = runner.run_node(entry, inputs)
        want = _run_alone(nodes[entry.node], dict(zip((o.name for o in wanted), inputs, strict=True)))
        for ours, theirs in zip(got, want, strict=True):
            if ours.dtype == np.uint64:
                assert ours.view(np.uint8).tobytes() == theirs.tobytes()
            else:
                np.testing.assert_allclose(ours, theirs, atol=SAME_FLOATS, rtol=SAME_FLOATS)


def _run_alone(node: ir.Node, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    values = {value.name: value for value in node.inputs if value is not None}
    given = [value for name, value in values.items() if name in feeds]
    inputs = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in given]
    constants = [value for name, value in values.items() if name not in feeds]
    by_name = {value.name: value for value in inputs}
    for value in constants:
        by_name[value.name] = ir.Value(name=value.name, const_value=value.const_value, type=value.type)
    outputs = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs]
    copy = ir.Node(
        node.domain,
        node.op_type,
        [by_name[value.name] for value in node.inputs],
        list(node.attributes.values()),
        outputs=outputs,
    )
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=[copy],
        initializers=[by_name[value.name] for value in constants],
        opset_imports={"": 21, "edgedm": 1},
        name="alone",
    )
    model = ir.Model(graph, ir_version=10)
    attach_functions(model)
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    packed = {name: a.view(np.uint8) if a.dtype == np.uint64 else a for name, a in feeds.items()}
    return session.run(None, packed)


def test_what_the_model_cannot_do_is_refused_with_a_reason(runner):
    with pytest.raises(UnsupportedError, match=r"trained 40\.\.999"):
        runner.prepare(50)
    with pytest.raises(UnsupportedError, match=r"trained 40\.\.999"):
        runner.prepare(timesteps=[500, 39])
    with pytest.raises(UnsupportedError, match=r"500, 500 \(steps 0, 1 of 2\): expected descending ones$"):
        runner.prepare(timesteps=[500, 500])
    with pytest.raises(UnsupportedError, match=r"label: expected 0\.\.1, got 2"):
        runner.prepare(10, label=2)
    with pytest.raises(UnsupportedError, match="sampler"):
        runner.prepare(10, sampler="euler")
    with pytest.raises(UnsupportedError, match="eta"):
        runner.prepare(10, eta=1.5)
    with pytest.raises(UnsupportedError, match=r"eta: expected 0 where the sampler is not EDM_DDIM, got 0\.5"):
        runner.prepare(10, "ddpm", eta=0.5)
    with pytest.raises(UnsupportedError, match=r"steps: expected 1\.\.1000"):
        runner.prepare(0)
    with pytest.raises(UnsupportedError, match="before edm_prepare"):
        runner.sample(1)
    runner.prepare(10)
    with pytest.raises(UnsupportedError, match=r"0\.\.9"):
        runner.run_step(10, _x())
    with pytest.raises(UnsupportedError, match="shape"):
        runner.run_step(0, np.zeros((1, 4, 4), np.float32))
    with pytest.raises(UnsupportedError, match=r"state\.mid"):
        runner.write_state({})


@pytest.mark.parametrize("threads", [1, 2])
def test_progress_can_stop_it(tiny_bundle, threads):
    seen = []

    def stop(done: int, total: int) -> bool:
        seen.append((done, total))
        return len(seen) < 3

    def fail(_done: int, _total: int) -> bool:
        raise ZeroDivisionError

    with LocalRunner(tiny_bundle, threads=threads) as runner:
        runner.prepare(10)
        with pytest.raises(KeyboardInterrupt):
            runner.sample(4, progress=stop)
        assert len(seen) == 3
        assert seen[-1][1] == 40
        with pytest.raises(ZeroDivisionError):
            runner.sample(4, progress=fail)
        assert runner.sample(1).shape == (1, 1, 8, 8)


def test_progress_is_told_from_the_first_step_on_where_lanes_are_fewer_than_threads(tiny_bundle, monkeypatch):
    drawn: list[np.ndarray] = []
    unbegun: list[bool] = []

    def empty(shape, dtype):
        drawn.append(np.full(shape, np.nan, dtype))
        return drawn[-1]

    def tell(done: int, _total: int) -> bool:
        if done == 1:
            unbegun.append(bool(np.isnan(drawn[-1]).any()))
        return True

    with LocalRunner(tiny_bundle, threads=4, lanes=2) as runner:
        monkeypatch.setattr(np, "empty", empty)
        for _ in range(20):
            runner.prepare(10)
            runner.sample(200, progress=tell)
    assert unbegun == [True] * 20  # images that nobody has begun, when the first step is told of


@pytest.mark.parametrize(
    ("name", "value"), [("image_shape", (1, 4, 4)), ("decoded_shape", (3, 8, 8)), ("condition_shape", (4, 8))]
)
def test_a_manifest_of_other_shapes_than_the_librarys_is_refused(tiny_bundle, name, value):
    bundle = load(tiny_bundle)
    lie = replace(bundle, manifest=bundle.manifest.model_copy(update={name: value}))
    with pytest.raises(InvalidModelError, match=name):
        LocalRunner(lie)


def test_other_weights_are_refused(tiny_bundle, tmp_path):
    from dataclasses import dataclass

    bundle = load(tiny_bundle)
    data = bytearray(bundle.weights.read_bytes())
    data[100] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)

    @dataclass(frozen=True)
    class Altered(type(bundle)):
        @property
        def weights(self):
            return tmp_path / "weights.bin"

    with pytest.raises(InvalidModelError, match="SHA-256"):
        LocalRunner(Altered(bundle.path, bundle.manifest))
    (tmp_path / "weights.bin").write_bytes(data[:-1])
    with pytest.raises(InvalidModelError, match="bytes of weights"):
        LocalRunner(Altered(bundle.path, bundle.manifest))


def test_a_thread_that_met_no_error_is_told_of_none(tiny_bundle):
    library = Library(tiny_bundle / "lib/libedgedm.so", load(tiny_bundle).manifest.prefix)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(library.call, "last_error").result() == b""


def test_closing_twice_is_harmless(tiny_bundle):
    runner = LocalRunner(tiny_bundle)
    runner.close()
    runner.close()


@pytest.mark.parametrize("kind", [LocalRunner, ExecRunner])
def test_a_closed_runner_says_so(tiny_bundle, kind):
    runner = kind(tiny_bundle)
    runner.close()
    calls = (runner.prepare, runner.reset, lambda: runner.sample(1), lambda: runner.normals(0, 0, 0, 4))
    for call in calls:
        with pytest.raises(UnsupportedError, match=r"bundle: the runner is closed; open the bundle again"):
            call()


def test_a_bundle_in_a_folder_whose_name_is_no_text_opens(tiny_bundle, tmp_path):
    place = tmp_path / os.fsdecode(b"model\xff.bundle")
    shutil.copytree(tiny_bundle, place)
    with LocalRunner(place) as there, LocalRunner(tiny_bundle) as here:
        assert np.array_equal(there.step(500, _x())[0], here.step(500, _x())[0])
    with pytest.raises(UnsupportedError, match="cores: expected a whole number"):
        LocalRunner(tiny_bundle, cores=(2**32,))
