"""What a `Watch` sees of training: memory by hand count, times without evaluations, points on the way."""

import time

import pytest
import torch
from torch import nn

from edgedm.models.denoiser import Denoiser
from edgedm.training.comparison.watch import Watch
from edgedm.training.loop import train
from edgedm.training.objective import Objective, Stage
from edgedm.training.options import LoopOptions

N, WIDTH = 6, 10


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)


class Chain(Objective):
    """Two linear layers around a ReLU, mean squared output; `frozen` trains the second layer alone."""

    def __init__(self, student, frozen=False):
        super().__init__(student)
        student.unet.first.requires_grad_(not frozen)
        self.cached = {"inputs": [torch.zeros(7)]}

    def forward(self, iteration, generator):
        x = torch.randn(N, WIDTH, generator=generator)
        net = self.student.unet
        return {"loss": net.second(torch.relu(net.first(x))).square().mean()}


def run(tmp_path, watch, frozen=False, iterations=4):
    objective = Chain(Denoiser(Net()), frozen)
    with watch:
        train(Stage("chain", objective, LoopOptions(iterations, 1e-3, warm_up=1, ema_decay=0.0)), tmp_path)
    return objective


def test_memory_is_what_backward_needs_each_storage_once_plus_model_gradients_and_moments(tmp_path):
    watch = Watch()
    run(tmp_path, watch)
    activation = 4 * N * WIDTH
    parameters = 4 * 2 * (WIDTH * WIDTH + WIDTH)
    # x, relu's output (which the second layer saves too) and the second layer's output; weights are the model's
    assert watch.memory["saved"] == 3 * activation
    assert watch.memory["model"] == parameters and watch.memory["trained"] == 3 * parameters
    assert watch.memory["cache"] == 4 * 7
    assert watch.memory["total"] == sum(watch.memory[part] for part in ("saved", "model", "trained", "cache"))


def test_what_is_frozen_has_neither_gradients_nor_saved_inputs(tmp_path):
    watch = Watch()
    run(tmp_path, watch, frozen=True)
    assert watch.memory["saved"] == 2 * 4 * N * WIDTH
    assert watch.memory["trained"] == 3 * 4 * (WIDTH * WIDTH + WIDTH)


def test_points_come_at_the_marks_and_take_no_time(tmp_path):
    def evaluate(student):
        assert not student.training
        time.sleep(0.3)
        return {"weight": student.unet.first.weight.sum().item()}

    watch = Watch({1, 3}, evaluate)
    began = time.monotonic()
    objective = run(tmp_path, watch)
    watch.note(4, objective.student.eval())
    assert [point["iteration"] for point in watch.points] == [1, 3, 4]
    assert len({point["weight"] for point in watch.points}) == 3
    assert watch.seconds() <= time.monotonic() - began - 0.9


def test_training_is_the_same_with_and_without_a_watch(tmp_path):
    torch.manual_seed(0)
    watched = run(tmp_path / "a", Watch({1}, lambda student: {}))
    torch.manual_seed(0)
    objective = Chain(Denoiser(Net()))
    train(Stage("chain", objective, LoopOptions(4, 1e-3, warm_up=1, ema_decay=0.0)), tmp_path / "b")
    for ours, theirs in zip(watched.parameters(), objective.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_student_is_shown_once_before_it_is_trained(tmp_path):
    watch, seen = Watch(), []
    watch.start = lambda student: seen.append(student.unet.first.weight.detach().clone())
    objective = run(tmp_path, watch)
    assert len(seen) == 1 and not torch.equal(seen[0], objective.student.unet.first.weight)


def test_the_hooks_are_gone_afterwards_even_if_training_fails(tmp_path):
    watch = Watch()
    with pytest.raises(ZeroDivisionError), watch:
        raise ZeroDivisionError
    run(tmp_path, Watch())
    assert watch.memory["total"] == 0
