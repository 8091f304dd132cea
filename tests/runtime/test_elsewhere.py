"""The tiny model on every other machine: self-test, and noise and sampler with the bits that they have here.

A kernel may round its floats otherwise on another machine (a product and a sum in one rounding), so what is held
against this machine is the sampler's own arithmetic, on the outputs that the machine's own steps gave.
"""

import subprocess

import elsewhere
import numpy as np
import pytest
import tiny_model
from elftools.elf.elffile import ELFFile

import edgedm
from edgedm.bundle import load
from edgedm.diffusion import NoiseSchedule, normals
from edgedm.diffusion.sampler import trajectory
from edgedm.errors import UnsupportedError
from edgedm.inspection import inspect
from edgedm.lower import compile as compile_graph
from edgedm.runtime import ExecRunner, LocalRunner, open_runner
from edgedm.targets import command_for, resolve

pytestmark = pytest.mark.slow

DRAWINGS = (("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0), ("dpm-solver++", 0.0))
STEPS, SEED, IMAGE, LABEL = 4, 2**40 + 3, 5, 1
PADDING = 4096  # bytes: headers, and what aligns sections
CLOSE = 1e-4  # of images in -1..1 after four steps of a model whose decisions no rounding flips here


@pytest.fixture(scope="module", params=elsewhere.TARGETS)
def foreign(request, tiny_folder, tmp_path_factory):
    elsewhere.need_machine(request.param)
    bundle = tmp_path_factory.mktemp("elsewhere") / "model.bundle"
    compile_graph(tiny_folder / "deploy.onnx", bundle, target=request.param, steps=10)
    return bundle


def run(bundle, *arguments, cwd=None) -> str:
    """The bundle's own program, as on the machine."""
    before = command_for(resolve(load(bundle).manifest.target.name))
    command = [*before, str(load(bundle).sampler), "--bundle", str(bundle), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_self_test_passes(foreign):
    assert "self-test passed" in run(foreign, "--self-test")


def test_it_finds_its_bundle_and_writes_above_the_folder_that_it_is_called_in(foreign):
    before = command_for(resolve(load(foreign).manifest.target.name))
    command = [*before, f"../bin/{load(foreign).sampler.name}", "-n", "1", "--label", "1", "-o", "../../above.npy"]
    done = subprocess.run(command, cwd=foreign / "src", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.load(foreign.parent / "above.npy").shape == (1, 1, 8, 8)


def test_noise_has_the_bits_that_it_has_here(foreign):
    with ExecRunner(foreign) as runner:
        for seed, image, draw, count in ((0, 0, 0, 100_001), (2**63 + 5, 7, 3, 4)):
            assert runner.normals(seed, image, draw, count).tobytes() == normals(seed, image, draw, count).tobytes()


@pytest.mark.parametrize(("sampler", "eta"), DRAWINGS)
def test_the_sampler_does_with_its_outputs_what_numpy_does(foreign, sampler, eta):
    schedule = NoiseSchedule.from_config(tiny_model.CONFIG["noise_schedule"])
    with ExecRunner(foreign) as runner:
        runner.prepare(STEPS, sampler, eta, LABEL)
        drawn = runner.sample(1, SEED, IMAGE)[0]
        runner.reset()
        steps = trajectory(
            lambda x, _timestep, step: runner.run_step(step, x), schedule, (1, 8, 8), STEPS, sampler, eta, SEED, IMAGE
        )
        *_, last = steps
    assert drawn.tobytes() == last.tobytes()


def test_program_probe_and_command_draw_the_same_image(foreign, tiny_bundle, tmp_path):
    options = {"steps": STEPS, "sampler": "ddpm", "label": LABEL, "guidance": 1.5, "seed": 9}
    edgedm.sample(foreign, tmp_path / "command.npy", n=2, **options)
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    run(foreign, "-n", 2, *flags, "-o", tmp_path / "program.npy")
    assert (tmp_path / "program.npy").read_bytes() == (tmp_path / "command.npy").read_bytes()
    with LocalRunner(tiny_bundle) as here:
        here.prepare(STEPS, "ddpm", label=LABEL, guidance=1.5)
        assert np.abs(here.sample(2, 9) - np.load(tmp_path / "command.npy")).max() < CLOSE


def test_threads_give_the_same_image(foreign):
    if resolve(load(foreign).manifest.target.name).isa == "wasm32":
        with pytest.raises(UnsupportedError, match="threads: WebAssembly has one here, got 3"):
            ExecRunner(foreign, 3)
        return
    images = []
    for threads in (1, 3):
        with ExecRunner(foreign, threads) as runner:
            runner.prepare(STEPS, label=LABEL)
            images.append(runner.sample(4, 1).tobytes())
    assert images[0] == images[1]


def test_it_opens_behind_a_pipe_and_is_inspected_like_any_other(foreign):
    with open_runner(foreign) as runner:
        assert isinstance(runner, ExecRunner)
    assert inspect(foreign).ok


def test_the_library_is_one_for_that_machine(foreign):
    machines = {"aarch64": 183, "arm": 40, "riscv64": 243}  # e_machine of the ELF header
    bundle = load(foreign)
    target = resolve(bundle.manifest.target.name)
    for path in (bundle.library, bundle.sampler, bundle.probe, foreign / "kernels.o"):
        header = path.read_bytes()[:20]
        if target.isa == "wasm32":
            assert header[:8] == b"\0asm\1\0\0\0"
            continue
        assert header[:4] == b"\x7fELF"
        assert int.from_bytes(header[18:20], "little") == machines[target.isa]


def test_no_page_of_padding_lies_in_a_file(foreign):
    """Where pages have 64 KiB, as on ARM, one would be a seventh of the program of a digits model."""
    bundle = load(foreign)
    if resolve(bundle.manifest.target.name).isa == "wasm32":
        assert bundle.sampler.read_bytes().count(bytes(PADDING)) == 0
        return
    for path in (bundle.library, bundle.sampler, bundle.probe):
        with open(path, "rb") as file:
            sections = list(ELFFile(file).iter_sections())
        held = sum(each["sh_size"] for each in sections if each["sh_type"] != "SHT_NOBITS")
        assert path.stat().st_size - held < PADDING, path.name
