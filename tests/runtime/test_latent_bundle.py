"""A bundle of a latent model: text conditions, guidance with a negative one, the decoder; here and in the program."""

import subprocess

import numpy as np
import pytest
import tiny_latent
from tiny_latent import CONFIG, IMAGE, LATENT, TOKENS, condition

from edgedm.bundle import load
from edgedm.diffusion import NoiseSchedule, sample
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export.decoder_file import decoder_path, load_decoder
from edgedm.inspection import inspect
from edgedm.lower import compile as compile_graph
from edgedm.runtime import ExecRunner, LocalRunner, sample_bundle

ROUNDING = 1e-5  # of sums of some tens of float32 terms of the size of 1


@pytest.fixture(scope="module")
def bundle():
    return tiny_latent.folder() / "model.bundle"


@pytest.fixture(scope="module")
def reference():
    return tiny_latent.Reference(tiny_latent.folder() / "deploy.onnx")


@pytest.fixture
def texts(tmp_path):
    """A condition file, as [T, D], and a negative one, as [1, T, D]."""
    np.save(tmp_path / "condition.npy", condition())
    np.save(tmp_path / "negative.npy", condition(4)[None])
    return {"condition": tmp_path / "condition.npy", "negative": tmp_path / "negative.npy"}


def run(bundle, *options):
    command = [bundle / "bin/edgedm-sample", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_manifest_describes_the_decoder_and_the_condition(bundle):
    manifest = load(bundle).manifest
    assert (manifest.image_shape, manifest.decoded_shape, manifest.condition_shape) == (LATENT, IMAGE, TOKENS)
    assert {node.graph for node in manifest.nodes} == {"step", "prepare", "decoder"}
    assert [port.role for port in manifest.inputs["decoder"]] == ["latent"]
    outcome = inspect(bundle)
    assert outcome.figures["calls.decoder"] >= 2
    assert outcome.details["summary"]["draws"] == "images of 3x8x8 from latents of 2x4x4"
    assert outcome.details["summary"]["text condition"] == "3x4"


def test_steps_follow_the_condition_that_was_prepared(bundle, reference):
    x = np.random.default_rng(1).standard_normal(LATENT).astype(np.float32)
    with LocalRunner(bundle) as runner:
        for seed in (3, 8):
            output, _ = runner.step(500, x, condition=condition(seed))
            assert np.allclose(output, reference.step(500, x, condition(seed)), atol=ROUNDING)


@pytest.mark.parametrize("kind", [LocalRunner, ExecRunner])
def test_guidance_leads_away_from_the_negative_condition(bundle, reference, kind):
    schedule = NoiseSchedule.from_config(CONFIG["noise_schedule"])
    for negative in (None, condition(4)):
        with kind(bundle) as runner:
            runner.prepare(5, guidance=2.5, condition=condition(), negative=negative)
            latent = runner.sample(1)[0]
            image = runner.decode(latent)
        away = np.zeros(TOKENS, np.float32) if negative is None else negative
        expected = sample(
            lambda x, timestep, _: reference.step(timestep, x, condition()),
            schedule,
            LATENT,
            5,
            predict_unconditional=lambda x, timestep, _, away=away: reference.step(timestep, x, away),
            guidance=2.5,
        )
        assert np.allclose(latent, expected, atol=ROUNDING * 100)  # five steps, each divides by a small number
        assert np.allclose(image, reference.decode(latent), atol=ROUNDING)


def test_decoding_leaves_a_drawing_alone(bundle):
    with LocalRunner(bundle) as runner:
        runner.prepare(4, condition=condition())
        whole = runner.sample(1)[0]
        x = np.random.default_rng(0).standard_normal(LATENT).astype(np.float32)
        before = runner.run_step(0, x)
        runner.decode(whole)
        assert np.array_equal(runner.run_step(0, x), before) and np.array_equal(runner.sample(1)[0], whole)


def test_program_and_python_draw_the_same_bytes(bundle, tmp_path, texts):
    chosen = {"n": 3, "steps": 6, "guidance": 1.75, "seed": 9, **texts}
    flags = [text for name, value in chosen.items() for text in ("-n" if name == "n" else f"--{name}", value)]
    for extra in ([], ["--latent"]):
        sample_bundle(bundle, tmp_path / "python.npy", latent=bool(extra), **chosen)
        done = run(bundle, *flags, *extra, "--threads", 2, "-o", tmp_path / "native.npy")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "native.npy").read_bytes() == (tmp_path / "python.npy").read_bytes()
        assert np.load(tmp_path / "native.npy").shape == (3, *(LATENT if extra else IMAGE))


def test_the_self_test_covers_the_decoder(bundle):
    done = run(bundle, "--self-test")
    assert done.returncode == 0 and "decoder        relative error" in done.stdout, done.stdout + done.stderr


def _broken(folder, kind):
    good, path = condition(), folder / "broken.npy"
    if kind == "missing":
        return path
    if kind == "text":
        path.write_text("no array")
    elif kind == "nan":
        good[1, 1] = np.nan
    arrays = {"shape": good[:2], "double": good.astype(np.float64), "columns": np.asfortranarray(good), "nan": good}
    if kind in arrays:
        np.save(path, arrays[kind])
    if kind in ("short", "long"):
        np.save(path, good)
        data = path.read_bytes()
        path.write_bytes(data[:-4] if kind == "short" else data + b"\0")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "No such file"),
        ("text", "not a NumPy array"),
        ("shape", "expected float32 of shape (3, 4)"),
        ("double", "expected float32 of shape (3, 4)"),
        ("columns", "rows first"),
        ("short", "fewer numbers"),
        ("long", "more bytes"),
        ("nan", "value 5 of 12 is not finite"),
    ],
)
def test_a_bad_condition_is_refused_by_name(bundle, tmp_path, kind, message):
    path = _broken(tmp_path, kind)
    done = run(bundle, "-n", 1, "--condition", path, "-o", tmp_path / "x.npy")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    if kind not in ("columns", "long"):  # which numpy reads, the first rightly
        with pytest.raises(InvalidModelError, match=r"condition: .*broken\.npy"):
            sample_bundle(bundle, tmp_path / "x.npy", n=1, condition=path)
    assert not (tmp_path / "x.npy").exists()


def test_a_missing_condition_and_a_needless_one_are_refused(bundle, tiny_bundle, tmp_path, texts):
    assert "cannot draw without one, 3 vectors of 4 floats" in run(bundle, "-o", tmp_path / "x.npy").stderr
    with pytest.raises(UnsupportedError, match=r"float32 \[3, 4\]"):
        sample_bundle(bundle, tmp_path / "x.npy")
    done = run(tiny_bundle, "--condition", texts["condition"], "-o", tmp_path / "x.npy")
    assert done.returncode == 2 and "no text condition" in done.stderr
    with pytest.raises(UnsupportedError, match="has no text condition"):
        sample_bundle(tiny_bundle, tmp_path / "x.npy", condition=texts["condition"])


def test_latents_go_into_arrays_and_only_latent_models_have_them(bundle, tiny_bundle, tmp_path, texts):
    done = run(bundle, "--condition", texts["condition"], "--latent", "-o", tmp_path / "x.png")
    assert done.returncode == 2 and "ends in .npy" in done.stderr
    assert "has no latents" in run(tiny_bundle, "--latent", "-o", tmp_path / "x.npy").stderr
    with LocalRunner(tiny_bundle) as runner, pytest.raises(UnsupportedError, match="draws images, not latents"):
        runner.decode(np.zeros((1, 8, 8), np.float32))


def test_a_decoder_must_be_there_and_of_the_same_model(tmp_path):
    graph = tiny_latent.write_graphs(tmp_path)
    other = {**CONFIG, "condition_tokens": 5}
    with pytest.raises(InvalidModelError, match="a decoder of another model"):
        load_decoder(graph, other)
    decoder_path(graph).unlink()
    with pytest.raises(InvalidModelError, match=r"deploy\.decoder\.onnx: no such file"):
        compile_graph(graph, tmp_path / "model.bundle", cache=False)
    assert load_decoder(graph, {}) is None
