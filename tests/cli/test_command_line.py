"""The contract that all verbs share: exit codes, `--json`, errors, lazy imports."""

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from edgedm.cli import main
from edgedm.cli.common import BAD_INPUT, CHECK_FAILED, INTERRUPTED, OK, show_figures, verb
from edgedm.errors import UnsupportedError
from edgedm.outcome import Outcome

HEAVY = ("torch", "tvm", "onnx", "onnxruntime", "diffusers", "numpy")


def run(body, *args):
    command = click.command()(verb(show_figures)(body))
    return CliRunner().invoke(command, args)


def test_help_lists_every_verb_and_imports_nothing_heavy():
    script = (
        "import sys\nfrom edgedm.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    for name in ("demo", "import", "quantize", "export", "optimize", "compile", "verify", "sample", "bench", "inspect"):
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_every_verb_answers_help(name):
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == OK
    assert "--json" in done.output
    assert "--quiet" in done.output


def test_whole_figures_are_printed_to_the_last_digit_and_others_rounded():
    figures = {"bytes": 1525955.0, "rate": 12345.678901, "least": 1.5e-9, "none": float("nan")}
    printed = [line.split() for line in run(lambda: Outcome(True, figures)).output.splitlines()]
    assert printed == [["bytes", "1,525,955"], ["rate", "12,345.7"], ["least", "1.5e-09"], ["none", "nan"]]


def test_a_good_outcome_exits_with_0_and_prints_its_figures():
    done = run(lambda: Outcome(True, {"size.bytes": 12.0}))
    assert done.exit_code == OK
    assert "size.bytes" in done.output


def test_a_failed_check_exits_with_1():
    assert run(lambda: Outcome(False)).exit_code == CHECK_FAILED


def test_json_is_one_object_with_the_three_fields():
    done = run(lambda: Outcome(True, {"a.b": 1.5}, {"note": "x"}), "--json")
    assert json.loads(done.stdout) == {"ok": True, "figures": {"a.b": 1.5}, "details": {"note": "x"}}


def test_quiet_prints_nothing():
    assert run(lambda: Outcome(True, {"a": 1.0}), "--quiet").output == ""


def test_bad_input_exits_with_2_and_says_what_and_where():
    def refuse():
        raise UnsupportedError("node 'conv_7': op Foo is unknown")

    done = run(refuse)
    assert done.exit_code == BAD_INPUT
    assert "node 'conv_7': op Foo is unknown" in done.stderr
    assert "Traceback" not in done.output
    assert json.loads(run(refuse, "--json").stdout)["details"]["kind"] == "UnsupportedError"


def test_ctrl_c_exits_with_130():
    def interrupt():
        raise KeyboardInterrupt

    assert run(interrupt).exit_code == INTERRUPTED


def test_a_full_disk_is_bad_input_not_a_traceback():
    def fill():
        raise OSError(28, "No space left on device", "out/model.onnx")

    done = run(fill)
    assert done.exit_code == BAD_INPUT
    assert "out/model.onnx: No space left on device" in done.stderr


def test_a_missing_extra_names_the_extra():
    def need_torch():
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    done = run(need_torch)
    assert done.exit_code == BAD_INPUT
    assert "pip install 'edgedm[train]'" in done.stderr


def test_a_bug_is_not_hidden_as_bad_input():
    def bug():
        raise ModuleNotFoundError("No module named 'edgedm.nonsense'", name="edgedm.nonsense")

    assert isinstance(run(bug).exception, ModuleNotFoundError)
