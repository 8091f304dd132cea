"""`edgedm quantize`: help at once, options by name, dry runs, and a killed training that the same command finishes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from edgedm.cli import main
from edgedm.cli.common import BAD_INPUT, INTERRUPTED, OK
from edgedm.cli.quantize import METHODS, _parse
from edgedm.errors import UnsupportedError
from edgedm.models import CheckpointConfig, build, load, save
from edgedm.models.config import Architecture
from edgedm.models.roles import FLOAT
from edgedm.training.recipes import RECIPES

UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 4,
    "num_class_embeds": 11,
    "add_attention": False,
}
MANY = 100_000  # iterations that no test waits for


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=UNET),
        method="fp32",
        roles=FLOAT,
        noise_schedule={"num_train_timesteps": 1000},
        null_class=10,
    )
    folder = tmp_path_factory.mktemp("base") / "ckpt"
    save(build(config, 0), folder)
    return str(folder)


def run(*arguments):
    return CliRunner().invoke(main, ["quantize", *map(str, arguments)])


def test_the_methods_of_the_help_are_those_that_train():
    assert set(METHODS) == set(RECIPES)
    text = run("--help").output
    assert all(name in text for name in METHODS)


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom edgedm.cli import main\nmain(['quantize', '--help'], standalone_mode=False)\n"
        "print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_options_are_names_and_values():
    assert _parse(("rank=8", "shape=[1, 2]", "path=a=b", "limit=null")) == {
        "rank": "8",
        "shape": [1, 2],
        "path": "a=b",
        "limit": None,
    }
    for pair in ("rank", "=8", "shape=[1"):
        with pytest.raises(UnsupportedError, match="--option"):
            _parse((pair,))


def test_an_output_is_asked_for_before_anything_is_done():
    done = run("--method", "bidm")
    assert done.exit_code == BAD_INPUT and "--output" in done.stderr


def test_a_dry_run_shows_the_layers_and_trains_nothing(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("--method", "lsq", "--base", base, "--bits", "W6A6", "--dry-run")
    done = run(*arguments)
    assert done.exit_code == OK and "down_blocks.0.resnets.0.conv1" in done.output and "W6A6" in done.output
    shown = json.loads(run(*arguments, "--json").stdout)
    assert shown["ok"] and shown["figures"]["bytes.result"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_method_is_described_without_a_base():
    done = run("--method", "efficientdm", "--describe")
    assert done.exit_code == OK and "efficientdm/code" in done.output and "rank" in done.output
    assert "W6A6" in run("--method", "efficientdm", "--describe", "--bits", "W6A6").output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--option", "colour=blue"), "colour"),
        (("--option", "gap=many"), "gap"),
        (("--bits", "W5A5"), "W5A5"),
        (("--policy", "code", "--method", "lsq"), "lsq has paper"),
        (("--data", "imagenet"), "imagenet"),
        (("--data", "none"), "bidm trains on images"),
        (("--base", "nowhere"), "nowhere"),
        (("--option", "gap=0"), "option 'gap' of bidm: expected a whole number, at least 1, got '0'"),
        (("--option", "distil=1"), "did you mean 'distill'?"),
        (("--null-class", "3"), "has 10, got 3"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(base, tmp_path, arguments, complaint):
    done = run("--method", "bidm", "--base", base, "-o", tmp_path / "out", *arguments)
    assert done.exit_code == BAD_INPUT and complaint in done.stderr, done.output
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_refused_before_the_base_is_read(tmp_path):
    (tmp_path / "notes").write_text("mine")
    below = str(tmp_path / "notes" / "ckpt")
    for option, others in (("-o", ()), ("--runs", ("-o", tmp_path / "out")), ("--log", ("-o", tmp_path / "out"))):
        done = run("--method", "bidm", "--base", "nowhere", *others, option, below)
        assert done.exit_code == BAD_INPUT and f"{tmp_path / 'notes'} is a file" in done.stderr, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_the_same_command_after_the_end_says_so_and_another_asks_before_it_replaces(base, tmp_path):
    arguments = (
        "--method",
        "ptq",
        "--base",
        base,
        "-o",
        tmp_path / "ckpt",
        "--option",
        "images=1",
        "--option",
        "steps=2",
    )
    first = run(*arguments, "--json")
    assert first.exit_code == OK, first.output
    weights = (tmp_path / "ckpt" / "model.safetensors").stat()
    again = run(*arguments)
    assert again.exit_code == OK and f"{tmp_path / 'ckpt'}: finished already with these settings" in again.output
    assert json.loads(run(*arguments, "--json").stdout)["figures"] == json.loads(first.stdout)["figures"]
    other = run(*arguments, "--seed", "1")
    assert other.exit_code == BAD_INPUT and "loop.seed was 0, is 1" in other.stderr and "--overwrite" in other.stderr
    assert (tmp_path / "ckpt" / "model.safetensors").stat() == weights
    assert run(*arguments, "--seed", "1", "--overwrite").exit_code == OK


def test_a_terminated_training_says_how_to_go_on_and_a_restart_begins_anew(base, tmp_path):
    output = tmp_path / "ckpt"
    command = [sys.executable, "-m", "edgedm.cli", "quantize", "--method", "xnor", "--base", base, "-o", str(output)]
    command += ["--batch", "2", "--save-every", "20"]
    running = subprocess.Popen([*command, "--iterations", str(MANY)], stderr=subprocess.PIPE, text=True)
    state = tmp_path / "ckpt.training" / "xnor" / "state.pt"
    while not state.exists() and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == INTERRUPTED, errors
    assert "the same command goes on from it" in errors and "Traceback" not in errors
    assert not output.exists()

    short = ("--method", "xnor", "--base", base, "-o", output, "--batch", 2, "--iterations", 40)
    other = run(*short)
    assert other.exit_code == BAD_INPUT and f"loop.iterations was {MANY}, is 40" in other.stderr
    again = run(
        "--method", "xnor", "--base", base, "-o", output, "--batch", 2, "--iterations", 40, "--restart", "--json"
    )
    assert again.exit_code == OK, again.output
    figures = json.loads(again.stdout)["figures"]
    assert figures["xnor.iteration"] == 40 and load(output).config.method == "xnor" and not state.exists()


@pytest.mark.slow
def test_two_launched_processes_write_one_checkpoint_and_speak_once(base, tmp_path):
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--main_process_port", "29745", "--mixed_precision", "no", "--dynamo_backend", "no"]
    verb = ["-m", "edgedm.cli", "quantize", "--method", "xnor", "--base", base, "-o", str(tmp_path / "ckpt")]
    settings = ["--iterations", "4", "--batch", "2", "--json"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, *verb, *settings]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["figures"]["xnor.iteration"] == 4
    record = json.loads((tmp_path / "ckpt.training" / "run.json").read_text())
    assert record["finished"] and record["identity"]["processes"] == 2
    assert load(tmp_path / "ckpt").config.method == "xnor"
