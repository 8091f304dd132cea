"""Ctrl-C and SIGTERM: the iteration ends, the state is saved, the message says how to go on."""

import os
import signal

import pytest
import torch
from toy_stage import Toy, stage

from edgedm.training.interrupt import SIGNALS, Interrupts, TrainingInterrupted
from edgedm.training.loop import train


class Interrupted(Toy):
    """Sends itself signals during iteration 2."""

    def __init__(self, *signals):
        super().__init__()
        self.signals = signals

    def forward(self, iteration, generator):
        terms = super().forward(iteration, generator)
        if iteration == 2:
            for number in self.signals:
                os.kill(os.getpid(), number)
        return terms


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_what_is_done_and_a_rerun_ends_as_if_nothing_had_happened(tmp_path, number):
    before = handlers()
    once, _ = train(stage(save_every=100), tmp_path / "once")
    with pytest.raises(TrainingInterrupted, match=r"toy: .* iteration 3 of 6.*state\.pt.*same command"):
        train(stage(Interrupted(number), save_every=100), tmp_path / "twice")
    assert torch.load(tmp_path / "twice" / "state.pt", weights_only=True)["iteration"] == 3
    resumed, _ = train(stage(save_every=100), tmp_path / "twice")
    assert all(
        torch.equal(a, b) for a, b in zip(once.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    assert handlers() == before


def test_a_keystroke_that_arrives_as_both_signals_still_saves(tmp_path):
    with pytest.raises(TrainingInterrupted):
        train(stage(Interrupted(signal.SIGINT, signal.SIGTERM), save_every=100), tmp_path)
    assert (tmp_path / "state.pt").exists()


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    with pytest.raises(TrainingInterrupted):
        train(stage(Interrupted(signal.SIGINT, signal.SIGINT), save_every=100), tmp_path)
    assert not (tmp_path / "state.pt").exists()


def test_it_is_a_keyboard_interrupt_and_raised_at_once_where_nothing_is_to_be_saved():
    with pytest.raises(KeyboardInterrupt, match="kept"), Interrupts("kept", at_once=True):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_request_that_nobody_acted_on_is_not_lost():
    with pytest.raises(TrainingInterrupted, match="late"), Interrupts("late"):
        os.kill(os.getpid(), signal.SIGTERM)
