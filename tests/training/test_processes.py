"""Two processes on this machine, started by accelerate: the same states, and the step of one with both batches."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_stage import Toy, stage, states

from edgedm.training.loop import seed_of, train
from edgedm.training.processes import Processes

PROGRAM = Path(__file__).with_name("two_processes.py")
ROUNDING = 1e-6  # the mean of two means and the mean of all are summed in another order


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launch(*arguments):
    """Start two processes by accelerate and wait for them; on a machine without GPUs they talk by gloo."""
    many = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", str(free_port()))
    plain = ("--mixed_precision", "no", "--dynamo_backend", "no")
    command = [sys.executable, "-m", "accelerate.commands.launch", *many, *plain, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return done


class Both(Toy):
    """One process that draws what two draw, and averages as they do."""

    def forward(self, iteration, generator):
        inputs = []
        for rank in range(2):
            generator.manual_seed(seed_of(0, iteration, rank))
            inputs.append(torch.randn(5, 4, generator=generator))
        both = torch.cat(inputs)
        return {"loss": (self.student[0](both) - both[:, :3]).square().mean()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch(PROGRAM, folder)
    return folder


def test_both_processes_end_with_the_same_states(folder):
    ours, theirs = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_step_of_two_equals_a_step_of_one_on_both_batches(folder, tmp_path):
    train(stage(Both()), tmp_path)
    one, two = states(tmp_path), states(folder / "plain")
    for name in ("objective.student.0.weight", "objective.student.0.bias", "ema.0.weight"):
        torch.testing.assert_close(two[name], one[name], atol=ROUNDING, rtol=ROUNDING)


def test_two_resumed_processes_equal_two_uninterrupted_ones_each_with_its_own_trajectory(folder):
    once, resumed = (torch.load(folder / part / "state.pt", weights_only=True) for part in ("once", "resumed"))
    assert all(torch.equal(value, resumed["objective"][name]) for name, value in once["objective"].items())
    assert torch.equal(once["own"][1]["x"], resumed["own"][1]["x"])
    assert not torch.equal(once["own"][1]["x"], once["objective"]["x"])


def test_a_state_of_two_is_refused_by_one(folder):
    with pytest.raises(Exception, match="processes was 2, is 1"):
        train(stage(), folder / "once")


def test_one_process_needs_no_launcher():
    alone = Processes()
    assert alone.count == 1 and alone.is_main and alone.device.type in ("cpu", "cuda")
    assert alone.any(True) and not alone.any(False) and alone.agree(3)
    assert alone.gather_different({"x": torch.ones(1)}) == [{}]
