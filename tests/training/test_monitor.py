"""What training says: nothing in a library, lines in a log, a bar on a terminal."""

import io
import sys

import pytest
import torch

from edgedm import progress
from edgedm.training import monitor
from edgedm.training.monitor import Monitor


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def speaking(monkeypatch):
    monkeypatch.setattr(progress, "enabled", True)
    monkeypatch.setattr(monitor, "FIRST_LINE", 0.0)
    monkeypatch.setattr(monitor, "GLANCE", 0.0)


def follow(start=0, speak=True):
    with Monitor("stage", start, 4, samples=8, speak=speak) as shown:
        for iteration in range(start, 4):
            shown.advance(iteration + 1, torch.tensor(0.25))


def test_a_library_is_silent(capsys):
    follow()
    assert capsys.readouterr() == ("", "")


def test_only_the_main_process_speaks(capsys, speaking):
    follow(speak=False)
    assert capsys.readouterr() == ("", "")


def test_lines_give_loss_samples_seen_rate_and_time_left(capsys, speaking):
    follow()
    out, err = capsys.readouterr()
    first, *_, last = err.splitlines()
    assert (
        out == "" and first.startswith("stage: 1 of 4 iterations, loss 0.25, 8 samples (") and first.endswith(" left")
    )
    assert last.startswith("stage: 4 of 4 iterations, loss 0.25, 32 samples (") and last.endswith("0:00:00 left")


def test_a_resumed_loop_says_so(capsys, speaking):
    follow(start=2)
    assert capsys.readouterr().err.startswith("stage: going on from iteration 2 of 4\n")


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch, speaking):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    follow()
    assert "stage" in terminal.getvalue() and "4/4" in terminal.getvalue() and "loss 0.25" in terminal.getvalue()
    assert "iterations" not in terminal.getvalue()
