"""Bad input: a message that names what and where, exit code 2 (130 for Ctrl-C), and nothing half-written."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from edgedm.cli import main
from edgedm.cli.common import BAD_INPUT, INTERRUPTED
from edgedm.models import locate

CHECKPOINT = "zoo:digits-bidm-w1a1"
EDGEDM = (sys.executable, "-c", "from edgedm.cli import main; main()")
SMALL_FILE = 100_000  # bytes; the W1A1 graph has 1.8 MB


def refused(*arguments):
    """Run a verb in this process; return its message after checking that it was refused as bad input."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == BAD_INPUT, done.output
    assert "Traceback" not in done.output
    return done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "nowhere", "-o", "out.onnx"),
        ("export", "zoo:nothing", "-o", "out.onnx"),
        ("optimize", "nowhere.onnx", "-o", "out.onnx"),
        ("compile", "nowhere.onnx", "-o", "out"),
        ("verify", "nowhere", "--against", CHECKPOINT),
        ("sample", "nowhere", "-o", "out.png"),
        ("bench", "nowhere"),
        ("bench", "--layer", "bconv:1x2"),
        ("inspect", "nowhere"),
        ("compile", "nowhere.onnx", "--target", "pdp11", "-o", "out"),
    ],
)
def test_what_is_not_there_is_named_and_nothing_is_written(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(*arguments)
    assert any(word in message for word in ("nowhere", "zoo:nothing", "bconv:1x2", "pdp11"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(locate(CHECKPOINT), tmp_path / "checkpoint")


def test_a_truncated_checkpoint_is_refused(checkpoint, tmp_path):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert str(weights) in refused("export", checkpoint, "-o", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_an_unknown_key_in_a_config_is_named(checkpoint, tmp_path):
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace('"format_version": 1', '"format_version": 1, "colour": "blue"'))
    assert "colour" in refused("export", checkpoint, "-o", tmp_path / "out.onnx")


def test_what_a_message_quotes_of_a_file_is_text_to_a_terminal(checkpoint, tmp_path):
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace("{", '{"\\u001b]0;title\\u0007\\u202e": 1, ', 1))
    message = refused("export", checkpoint, "-o", tmp_path / "out.onnx")
    assert r"\x1b]0;title\x07\u202e" in message
    assert all(each.isprintable() or each == "\n" for each in message)


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"\x08\x0a" + os.urandom(1000))
    assert str(graph) in refused("optimize", graph, "-o", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_strength_without_a_start_is_refused():
    assert "--strength: it is that of --start" in refused("sample", "zoo:digits-fp32", "--strength", "0.4")


@pytest.mark.parametrize("option", [("--steps", 1001), ("--label", 10)])
def test_a_schedule_or_label_that_the_model_lacks_is_refused(option, tmp_path):
    message = refused("sample", "zoo:digits-fp32", *option, "-o", tmp_path / "out.png")
    assert str(option[1]) in message
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("option", "most"),
    [("--seed", 2**64 - 1), ("-n", 10**6), ("--steps", 10**6), ("--label", 10**6), ("--threads", 1024)],
)
def test_a_number_above_the_runtimes_is_refused_as_the_bundles_program_does(option, most, tmp_path):
    message = refused("sample", "zoo:digits-fp32", option, most + 1, "-o", tmp_path / "out.png")
    assert option in message
    assert str(most) in message
    done = CliRunner().invoke(main, ["sample", "nowhere", option, str(most)])
    assert "nowhere" in done.stderr  # the number itself is none of the faults


def test_a_full_disk_leaves_nothing(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE, SMALL_FILE))

    command = (*EDGEDM, "export", CHECKPOINT, "-o", str(tmp_path / "model.onnx"))
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == BAD_INPUT, done.stderr
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [4.0, *(pytest.param(each, marks=pytest.mark.slow) for each in (1.0, 7.0))])
def test_ctrl_c_leaves_nothing(seconds, tmp_path):
    command = (*EDGEDM, "export", CHECKPOINT, "-o", str(tmp_path / "model.onnx"))
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    if running.returncode == 0:  # it was faster than we were
        return
    assert running.returncode == INTERRUPTED, errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("verb", "name"), [("export", "m.onnx"), ("optimize", "d.onnx"), ("compile", "bundle"), ("sample", "p.png")]
)
def test_a_pipe_is_refused_as_output_before_anything_else_and_stays(tmp_path, verb, name):
    os.mkfifo(tmp_path / name)
    assert f"{name}: is a pipe or device; expected a name for a file" in refused(verb, "nowhere", "-o", tmp_path / name)
    assert (tmp_path / name).is_fifo()
