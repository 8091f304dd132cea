"""What docs/verify.md tells a team to put into its CI: the files are valid, and their commands are ours and run."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
import tiny
import yaml
from click.testing import CliRunner
from mutants import LAYER, write_back

from edgedm.cli import main
from edgedm.models import save
from edgedm.verify.gate import load_gate

DOCS = Path(__file__).parents[2] / "docs"
CI = DOCS / "ci"


def commands(text: str) -> list[list[str]]:
    """The `edgedm ...` commands in shell text, as words."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if line.strip().startswith("edgedm ")]


def workflow() -> list[list[str]]:
    (job,) = yaml.safe_load((CI / "verify.yml").read_text())["jobs"].values()
    return [words for step in job["steps"] for words in commands(step.get("run", ""))]


def hook() -> list[str]:
    (repository,) = yaml.safe_load((CI / "pre-commit-config.yaml").read_text())["repos"]
    (only,) = repository["hooks"]
    assert re.match(only["files"], "model.onnx") and not re.match(only["files"], "README.md")
    assert only["pass_filenames"] is False and only["language"] == "system"
    return shlex.split(only["entry"])


def test_the_example_gate_is_one() -> None:
    gate = load_gate(CI / "gate.toml")
    assert gate.of_method("dilatequant").step.min_snr_db == 20
    assert gate.of_method("bidm").step.min_snr_db == 0
    assert "distribution" in gate.model_fields_set


def test_the_workflow_is_a_workflow_and_keeps_its_report() -> None:
    whole = yaml.safe_load((CI / "verify.yml").read_text())
    assert whole["permissions"] == {"contents": "read"}
    (job,) = whole["jobs"].values()
    assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    uploads = [step for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact@")]
    assert len(uploads) == 1 and uploads[0]["if"] == "always()"
    verbs = [words[1] for words in workflow()]
    assert verbs == ["export", "optimize", "compile", "verify"]


def readme() -> list[object]:
    """The YAML of the README: steps of a job, and a pre-commit configuration."""
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS.parent / "README.md").read_text(), re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


def test_the_readme_shows_the_hook_and_steps_of_the_workflow() -> None:
    steps, hooks = readme()
    assert hooks == yaml.safe_load((CI / "pre-commit-config.yaml").read_text())
    (job,) = yaml.safe_load((CI / "verify.yml").read_text())["jobs"].values()
    assert [each["uses"] for each in steps if "uses" in each] == [job["steps"][-1]["uses"]]
    told = [words for each in steps for words in commands(each.get("run", ""))]
    assert [words[1] for words in told] == ["compile", "verify"]
    for words in told:
        known = {name for parameter in main.get_command(None, words[1]).params for name in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known


def test_the_workflow_names_no_package_index() -> None:
    assert "index-url" not in (CI / "verify.yml").read_text()


def test_the_page_of_the_run_shows_the_whole_report_but_for_its_images(tmp_path) -> None:
    (job,) = yaml.safe_load((CI / "verify.yml").read_text())["jobs"].values()
    (show,) = (step["run"] for step in job["steps"] if "GITHUB_STEP_SUMMARY" in step.get("run", ""))
    row = "| ok | " + "µ" * 5000 + " |"
    images = "![a](data:image/png;base64,AA==) ![b](data:image/png;base64,BB)"
    (tmp_path / "parity.md").write_text(f"# ✓\n{row}\n{images}\nend\n")
    summary = tmp_path / "summary"
    variables = {**os.environ, "GITHUB_STEP_SUMMARY": str(summary)}
    subprocess.run(["bash", "-c", show], cwd=tmp_path, env=variables, check=True)
    assert summary.read_text() == f"# ✓\n{row}\n \nend\n"


@pytest.mark.parametrize("words", [*workflow(), hook()], ids=" ".join)
def test_every_command_there_has_options_that_the_verb_has(words: list[str]) -> None:
    verb = main.get_command(None, words[1])
    assert verb is not None
    known = {name for parameter in verb.params for name in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


@pytest.fixture
def project(deployed, tmp_path, monkeypatch):
    """A folder as the examples expect it: the exported graph and its checkpoint."""
    save(tiny.checkpoint("bidm"), tmp_path / "checkpoint")
    shutil.copyfile(deployed("bidm").with_name("model.onnx"), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: list[str]):
    return CliRunner().invoke(main, words[1:])


def damage(path: str) -> None:
    """Turn one bit of a layer's weights."""
    proto = onnx.load(path)

    def edit(_proto, arrays) -> None:
        name = next(each for each in arrays if each.startswith(LAYER) and arrays[each].dtype == "uint8")
        arrays[name].reshape(-1)[0] ^= 1

    write_back(proto, edit)
    onnx.save(proto, path)


def test_the_pre_commit_hook_runs_and_lets_a_right_graph_through(project) -> None:
    done = run(hook())
    assert done.exit_code == 0, done.output
    assert done.output == ""


def test_the_pre_commit_hook_says_what_is_off_and_what_introduced_it(project) -> None:
    damage("model.onnx")
    done = run(hook())
    assert done.exit_code == 1 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("edgedm: model.onnx: first off at level weights: ") and LAYER in first
    assert "expected" in first and "got" in first
    assert second.startswith("edgedm: introduced by: export, or a change of the file")


def test_exit_code_1_comes_with_every_report_and_2_with_a_gate_that_is_none(project) -> None:
    damage("model.onnx")
    Path("gate.toml").write_text("levels = ['weights']\nsteps = 4\n")
    reports = ["--html", "out/p.html", "--markdown", "out/p.md", "--junit", "out/p.xml", "--json"]
    words = ["edgedm", "verify", "model.onnx", "--against", "checkpoint", "--gate", "gate.toml", *reports]
    done = run(words)
    assert done.exit_code == 1, done.output
    outcome = json.loads(done.stdout)
    failure = outcome["details"]["first_failure"]
    assert failure["level"] == "weights" and LAYER in failure["where"] and "expected" in failure["what"]
    assert failure["introduced_by"].startswith("export, or a change of the file")
    assert ElementTree.parse("out/p.xml").getroot().get("failures") == "1"
    assert "does not hold" in Path("out/p.html").read_text() and LAYER in Path("out/p.html").read_text()
    assert "does not hold" in Path("out/p.md").read_text()
    Path("gate.toml").write_text("[weights]\nrequierd = false\n")
    refused = run(words)
    assert (
        refused.exit_code == 2
        and "gate.toml: weights.requierd: unknown key; expected one of required" in refused.stderr
    )
    Path("gate.toml").write_text("levels = ['weights']\n[weights]\nrequired = false\n")
    assert run([*words, "--quiet"]).exit_code == 0
