"""Several variants in one bundle: each machine runs the best that it can, and the integers of all are the same."""

import ctypes
import os
import shutil
import subprocess
import sys

import elsewhere
import numpy as np
import pytest
import tools
import torch

import edgedm
from edgedm.bundle import load
from edgedm.errors import InvalidModelError, ToolchainError, UnsupportedError
from edgedm.export.graph_io import load_graph
from edgedm.integrations.diffusers import BundleUNet
from edgedm.lower import compile as compile_graph
from edgedm.runtime import ExecRunner, LocalRunner, open_runner
from edgedm.runtime.library import Library, source_of
from edgedm.targets import resolve, runs_natively
from edgedm.targets.android import PAGE_BYTES
from edgedm.verify.graphs import Graph
from edgedm.verify.op_level import op_level
from edgedm.verify.probe import open_probe

PCS = ("x86-64-v4+vnni+vpopcntdq", "x86-64-v3", "x86-64-v2")
PHONES = ("cortex-a76", "cortex-a53")
HERE = tuple(name for name in PCS if runs_natively(resolve(name)))
SEED = 11
CLOSE = 1e-4  # of images in -1..1: floats may be rounded otherwise, and no decision of this model is that near


@pytest.fixture(scope="module", autouse=True)
def nothing_is_forced():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("EDGEDM_FEATURES", raising=False)
        yield


@pytest.fixture(scope="module")
def pcs(tiny_folder, tmp_path_factory):
    bundle = tmp_path_factory.mktemp("variants") / "model.bundle"
    outcome = compile_graph(tiny_folder / "deploy.onnx", bundle, target=",".join(reversed(PCS)), steps=10)
    assert outcome.details["target"] == ",".join(PCS)
    return bundle


@pytest.fixture(scope="module", params=["", "android-"])
def phones(request, tiny_folder, tmp_path_factory):
    """One bundle for boards and one for phones, and what their variants' names begin with."""
    elsewhere.need_machine("aarch64")
    bundle = tmp_path_factory.mktemp("variants") / "model.bundle"
    targets = [f"{request.param}{name}" for name in reversed(PHONES)]
    compile_graph(tiny_folder / "deploy.onnx", bundle, target=targets, steps=10)
    return bundle, request.param


def program(bundle, *arguments, before=(), features=None) -> tuple[int, str]:
    """Exit code of the bundle's own program, and all that it said."""
    command = [*before, bundle / "bin/edgedm-sample", "--bundle", bundle, *arguments]
    environment = {**os.environ, **({} if features is None else {"EDGEDM_FEATURES": features})}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def accumulators(runner) -> np.ndarray:
    """What the binary convolution of the variant that `runner` opened adds up, on seeded bits."""
    rng = np.random.default_rng(SEED)
    node = next(each for each in runner.manifest.nodes if each.op == "BinaryConv")
    bits, scale, old = [each for each in node.inputs if each.source != "weights"]
    feeds = [
        rng.integers(0, 256, bits.shape, np.uint64),  # 8 channels, the rest of a word is padding
        np.ones(scale.shape, np.float32),
        np.zeros(old.shape, np.float32),
    ]
    ones = {n: np.ones(o.shape, np.float32) for n, o in enumerate(node.inputs) if o.name == "multiplier"}
    zeros = {n: np.zeros(o.shape, np.float32) for n, o in enumerate(node.inputs) if o.name in ("addend", "gain")}
    assert (len(ones), len(zeros)) == (1, 2)
    with runner.lend({**ones, **zeros}, node):
        (sums,) = runner.run(node, feeds)
    assert np.array_equal(sums, sums.round()) and sums.std() > 1
    return sums


def holds_at_level_op(probe) -> bool:
    graphs = {n: Graph(load_graph(probe.bundle.path / "golden" / f"{n}.onnx")) for n in ("prepare", "step")}
    level = op_level(probe, graphs)
    assert level.figures["accumulators"] >= 1
    return level.ok


# --- PCs --------------------------------------------------------------------------------------------------------


def test_the_best_that_runs_is_chosen_in_python_and_in_the_program(pcs):
    with LocalRunner(pcs) as here, open_runner(pcs) as opened:
        assert here.variant == opened.variant == HERE[0]
        assert here.manifest.target.name == HERE[0]
        assert here.manifest.variants()[0] == HERE[0]
    code, text = program(pcs, "--info")
    assert code == 0
    assert f"variant {HERE[0]}: runs\n" in text
    assert text.count("runs\n") == 1
    assert program(pcs, "--version") == (code, text)


@pytest.mark.parametrize("variant", PCS)
def test_each_variant_passes_the_self_test_and_draws_when_it_is_named(pcs, tmp_path, variant):
    if variant not in HERE:
        code, text = program(pcs, "--self-test", "--variant", variant)
        assert (code, f"variant {variant}: this processor lacks" in text) == (2, True)
        return
    for named, features in (((), variant), (("--variant", variant), "x86-64-v9")):  # an option beats the environment
        code, text = program(pcs, "--self-test", *named, features=features)
        assert code == 0, text
        assert text.startswith(f"variant {variant}\n") and "self-test passed" in text
        assert ", off 0\n" in text  # the golden data of its own layers was found
    with LocalRunner(pcs, variant=variant) as runner:
        runner.prepare(5, label=1)
        drawn = runner.sample(2, SEED)
    options = ["-n", 2, "--steps", 5, "--label", 1, "--seed", SEED, "-o", tmp_path / "a.npy"]
    assert program(pcs, "--variant", variant, *options)[0] == 0
    assert np.load(tmp_path / "a.npy").tobytes() == drawn.tobytes()


def test_two_variants_draw_in_one_process(pcs):
    runners = [LocalRunner(pcs, threads=2, variant=name) for name in HERE]
    try:
        for runner in runners:
            runner.prepare(5, label=1)
        turns = [[runner.sample(2, SEED) for runner in runners] for _ in range(2)]
    finally:
        for runner in runners:
            runner.close()
    for first, second in zip(*turns, strict=True):
        assert first.tobytes() == second.tobytes()
    assert all(np.abs(each - turns[0][0]).max() < CLOSE for each in turns[0])


def test_the_integers_of_all_variants_are_the_same(pcs):
    found = []
    for variant in HERE:
        with open_probe(load(pcs).of(variant)) as probe:
            assert probe.variant == variant
            found.append(accumulators(probe))
            assert holds_at_level_op(probe)
    assert len(found) > 1
    assert all(np.array_equal(each, found[0]) for each in found)


def test_a_name_that_is_not_there_is_refused_with_those_that_are(pcs, monkeypatch):
    code, text = program(pcs, "--self-test", features="x86-64-v9")
    assert (code, f'variant "x86-64-v9": the bundle has {", ".join(PCS)}' in text) == (2, True)
    with pytest.raises(UnsupportedError, match=r"x86-64-v9.*x86-64-v3"):
        LocalRunner(pcs, variant="x86-64-v9")
    monkeypatch.setenv("EDGEDM_FEATURES", "x86-64-v9")
    for opening in (LocalRunner, open_runner, ExecRunner):
        with pytest.raises(UnsupportedError, match=r"x86-64-v9.*x86-64-v3"):
            opening(pcs)


def test_the_environment_names_the_variant_in_python_too(pcs, monkeypatch):
    monkeypatch.setenv("EDGEDM_FEATURES", "x86-64-v2")
    for opening in (LocalRunner, open_runner, ExecRunner):
        with opening(pcs) as runner:
            assert (runner.variant, runner.manifest.target.name) == ("x86-64-v2", "x86-64-v2")
    with open_runner(pcs, variant=HERE[0]) as runner:
        assert runner.variant == HERE[0]


@pytest.mark.parametrize("variant", HERE)
def test_a_pipeline_of_diffusers_runs_the_variant_that_is_named(pcs, variant):
    x = np.random.default_rng(SEED).standard_normal((1, 8, 8)).astype(np.float32)
    with BundleUNet(pcs, variant=variant) as unet, LocalRunner(pcs, variant=variant) as runner:
        assert unet._manifest.target.name == variant
        got = unet(torch.from_numpy(x[None]), 900, class_labels=torch.tensor([1])).sample
        assert got.numpy().tobytes() == runner.step(900, x, 1)[0].tobytes()
    with pytest.raises(UnsupportedError, match="x86-64-v9"):
        BundleUNet(pcs, variant="x86-64-v9")


@pytest.mark.parametrize(
    ("cpu", "variant"),
    [("Nehalem", "x86-64-v2"), ("Haswell", "x86-64-v3"), ("Haswell,-xsave", "x86-64-v2"), ("qemu64", None)],
)
def test_other_processors_get_what_they_can_run(pcs, cpu, variant):
    """Without xsave the processor has AVX, but nobody keeps its registers. qemu64 has no SSE4."""
    tools.need("qemu-x86_64-static")
    code, text = program(pcs, "--self-test", before=("qemu-x86_64-static", "-cpu", cpu))
    if variant is None:
        assert code == 2
        assert "this processor lacks popcnt sse4.1 sse4.2 ssse3, which x86-64-v2 needs" in text
    else:
        assert code == 0, text
        assert f"variant {variant}\n" in text and "self-test passed" in text


def test_a_bundle_of_one_variant_says_what_the_processor_lacks_too(tiny_bundle):
    tools.need("qemu-x86_64-static")
    before = ("qemu-x86_64-static", "-cpu", "qemu64")
    code, text = program(tiny_bundle, "--self-test", before=before)
    assert (code, "this processor lacks" in text) == (2, True), text
    with pytest.raises(ToolchainError, match="this processor lacks"):
        ExecRunner(tiny_bundle, command=before)


def test_a_bundle_from_before_there_were_variants_is_refused_by_what_it_lacks(tiny_bundle, tmp_path):
    library = (tiny_bundle / "lib/libedgedm.so").read_bytes()
    (tmp_path / "old.so").write_bytes(library.replace(b"_model_variant\0", b"_model_varian_\0"))
    with pytest.raises(InvalidModelError, match=r"model_variant is missing; compile the bundle again"):
        Library(tmp_path / "old.so", load(tiny_bundle).manifest.prefix)
    answer = r"printf '\0\0\0\0\0\0\0\0\10\0\0\0\0\0\0\0EDMPROB1'"  # status, zero, bytes
    with pytest.raises(InvalidModelError, match="not the probe of this edgedm; compile the bundle again"):
        ExecRunner(tiny_bundle, command=("sh", "-c", answer))


def test_only_the_weights_of_the_variant_that_runs_are_read(pcs, tmp_path):
    """A byte that changes in a section is noticed by those that read it, and by no other."""
    copy = tmp_path / "b"
    shutil.copytree(pcs, copy)
    sections = load(pcs).manifest.sections
    assert {len(each.variants) for each in sections} >= {1, len(PCS)}  # some are shared by all, some by none
    data = (copy / "weights.bin").read_bytes()
    for section in sections:
        assert section.offset % PAGE_BYTES == 0
        place = section.offset + section.bytes // 2
        (copy / "weights.bin").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        for variant in HERE:
            code, text = program(copy, "-n", 1, "--steps", 1, "-o", tmp_path / "a.npy", "--variant", variant)
            expected = (2, True) if variant in section.variants else (0, False)
            assert (code, "SHA-256 differs" in text) == expected, text


class Model(ctypes.Structure):
    """`edm_model`, which is nobody's business but the runtime's."""

    _fields_ = (
        ("variant", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("mapped", ctypes.c_void_p),
        ("copied", ctypes.c_void_p),
        ("mapped_bytes", ctypes.c_size_t),
    )


@pytest.mark.parametrize("offset", [64, 4, 4097])
@pytest.mark.parametrize("variant", HERE)
def test_weights_inside_another_file_are_mapped_or_their_own_sections_copied(pcs, tmp_path, offset, variant):
    """An odd offset cannot be mapped; of the copy only what this variant reads is filled, and the file let go."""
    data, manifest = (pcs / "weights.bin").read_bytes(), load(pcs).manifest
    (tmp_path / "package").write_bytes(b"x" * offset + data + b"yyy")
    library, model = Library(pcs / "lib/libedgedm.so", manifest.prefix), ctypes.c_void_p()
    with open(tmp_path / "package", "rb") as file:
        place = {"fd": file.fileno(), "offset": offset, "length": len(data)}
        library.check("open", ctypes.byref(source_of(variant, **place)), ctypes.byref(model))
    opened = ctypes.cast(model, ctypes.POINTER(Model)).contents
    assert opened.weights % 64 == 0
    assert (bool(opened.mapped), bool(opened.copied)) == ((True, False) if offset == 64 else (False, True))
    for section in manifest.sections:
        held = ctypes.string_at(opened.weights + section.offset, section.bytes)
        same = held == data[section.offset : section.offset + section.bytes]
        assert same == (variant in section.variants or offset == 64)
    library.call("close", model)


def test_inspect_describes_the_variant_that_would_run_and_lists_all(pcs):
    outcome = edgedm.inspect(pcs)
    assert outcome.details["summary"]["target"] == HERE[0]
    assert sorted(row["variant"] for row in outcome.details["tables"]["Variants"]) == sorted(PCS)
    assert edgedm.inspect(pcs, "x86-64-v2").details["summary"]["target"] == "x86-64-v2"


def test_the_verbs_run_the_variant_that_is_named(pcs, tmp_path):
    drawn = edgedm.sample(pcs, tmp_path / "a.npy", n=1, steps=2, variant="x86-64-v2")
    assert drawn.details["variant"] == "x86-64-v2"
    timed = edgedm.bench(pcs, against=("none",), threads=(1,), variant="x86-64-v2")
    assert timed.details["target"] == "x86-64-v2"
    assert timed.figures["step_ms.edgedm.t1"] > 0
    parts = edgedm.inspect(pcs).details["tables"]["Shipped bytes"]
    assert all(row["bytes"] >= 0 for row in parts)
    assert "weights that only other variants read" in {row["part"] for row in parts}
    for refused in (
        lambda: edgedm.sample("zoo:digits-fp32", variant="a"),
        lambda: edgedm.inspect("zoo:x", variant="a"),
    ):
        with pytest.raises(UnsupportedError, match="no bundle"):
            refused()


def test_the_command_line_takes_targets_repeated_and_by_commas(tiny_folder, tmp_path):
    command = [sys.executable, "-m", "edgedm.cli", "compile", tiny_folder / "deploy.onnx", "-o", tmp_path / "b"]
    for options in (["--target", "x86-64-v2", "--target", "aarch64"], ["--target", "x86-64-v2,aarch64"]):
        done = subprocess.run([*map(str, command), *options], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "x86-64-v2 and aarch64 are different machines" in done.stderr


def test_one_c_library_serves_all_variants(pcs):
    tools.need("nm")
    manifest = load(pcs).manifest
    text = subprocess.run(["nm", pcs / "kernels.o"], capture_output=True, text=True, check=True).stdout
    for name in PCS:
        of = manifest.of(name)
        assert all(f"__tvm_ffi_{node.kernel}\n" in text for node in of.nodes)
    kernels = [{node.kernel for node in manifest.of(name).nodes} for name in PCS]
    assert not kernels[0] & kernels[1] and not kernels[1] & kernels[2]


def test_the_c_of_several_variants_compiles_without_a_warning_under_gcc_too(pcs, tmp_path):
    tools.need("gcc")
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror", "-DEDM_PROBE"]
    for source in ("model.c", "variants.c", "weights.c"):
        command = ["gcc", *flags, "-fsyntax-only", "-I", pcs / "include", pcs / "src" / source]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr


# --- phones and boards ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpu", "core"), [("cortex-a53", "cortex-a53"), ("cortex-a76", "cortex-a76"), ("max", "cortex-a76")]
)
def test_an_arm_core_gets_the_kernels_that_it_has_instructions_for(phones, cpu, core):
    bundle, before = phones[0], ("qemu-aarch64-static", "-cpu", cpu)
    variant = phones[1] + core
    code, text = program(bundle, "--self-test", before=before)
    assert code == 0, text
    assert text.startswith(f"variant {variant}\n") and "self-test passed" in text
    with ExecRunner(bundle, command=before) as runner:
        assert (runner.variant, runner.manifest.target.name) == (variant, variant)


@pytest.mark.slow
def test_a_core_without_dot_products_refuses_their_kernels(phones):
    bundle, system = phones
    before = ("qemu-aarch64-static", "-cpu", "cortex-a53")
    code, text = program(bundle, "--self-test", before=before, features=f"{system}cortex-a76")
    assert code == 2
    assert f"variant {system}cortex-a76: this processor lacks dotprod; here run: {system}cortex-a53" in text


@pytest.mark.slow
def test_the_integers_of_both_arm_variants_are_those_of_this_machine(phones, tiny_bundle):
    bundle, system = phones
    with open_probe(load(tiny_bundle)) as probe:
        expected = accumulators(probe)
    for name in PHONES:
        with open_probe(load(bundle).of(system + name)) as probe:
            assert probe.variant == system + name
            assert np.array_equal(accumulators(probe), expected)
            assert holds_at_level_op(probe)


@pytest.mark.slow
def test_both_arm_variants_read_the_same_weights(phones):
    manifest = load(phones[0]).manifest
    assert [each.variants for each in manifest.sections] == [manifest.variants()]
