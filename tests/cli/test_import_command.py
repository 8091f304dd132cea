"""`edgedm import`: what it says without a file."""

import pytest
from click.testing import CliRunner

from edgedm.cli import main
from edgedm.cli.common import BAD_INPUT, OK
from edgedm.cli.import_checkpoint import LAYOUTS
from edgedm.models import importers


def run(*arguments):
    return CliRunner().invoke(main, ["import", *arguments])


def test_the_help_lists_the_layouts_that_there_are():
    assert list(LAYOUTS) == list(importers.LAYOUTS)
    assert "dilatequant-cifar" in run("--help").output


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_describes_its_options(layout):
    done = run("--layout", layout, "--describe")
    assert done.exit_code == OK, done.output
    assert all(name in done.output for name in importers.LAYOUTS[layout].options.model_fields)
    assert "Usage docs" not in done.output  # of the library below
    (rows,) = importers.describe_layout(layout).details["tables"].values()
    assert not [row["option"] for row in rows if not row["meaning"]]


def test_a_file_and_an_output_are_asked_for():
    for arguments in (("--layout", "ldm"), ("x.ckpt", "--layout", "ldm")):
        done = run(*arguments)
        assert done.exit_code == BAD_INPUT and "--output" in done.stderr
    done = run("--layout", "magic", "--describe")
    assert done.exit_code == BAD_INPUT and "bidm-ldm" in done.stderr
