"""Calibration of activation tables: which values each row is set from."""

import pytest
import torch
from torch import nn

from edgedm.models.denoiser import Denoiser
from edgedm.quant.clock import clock_of
from edgedm.quant.uniform import ActivationTable, mse_grid
from edgedm.training import calibrate as module
from edgedm.training.calibrate import calibrate
from edgedm.training.trajectory import Samples


class Net(nn.Module):
    """Two tables in a row, called as diffusers' UNets are."""

    def __init__(self, edges=(0,), heads=1):
        super().__init__()
        clock = clock_of(self)
        self.first = ActivationTable(4, edges, clock, heads)
        self.second = ActivationTable(8, (0,), clock)

    def forward(self, x, timestep, class_labels=None, return_dict=True):
        return (self.second(2 * self.first(x)),)


def samples(count=40, shape=(2, 4, 3)):
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.arange(count) * 1000 // count
    noisy = torch.randn((count, *shape), generator=generator) * (1 + timesteps.reshape(-1, 1, 1, 1) / 250)
    return Samples(noisy, timesteps, torch.zeros(count, dtype=torch.int64))


def grid(x, bits=4, dims=None):
    step, zero = mse_grid(x, bits, dims or tuple(range(x.ndim)))
    return step.flatten(), zero.flatten()


def test_every_table_gets_the_grid_of_float_activations_whatever_the_batch():
    data = samples()
    for batch in (7, 64):
        net = Net()
        calibrate(Denoiser(net), data, batch=batch)
        step, zero = grid(data.noisy)
        assert torch.allclose(net.first.step[0], step) and torch.equal(net.first.zero[0], zero)
        assert torch.allclose(net.second.step[0], grid(2 * data.noisy, 8)[0])  # not of what `first` makes of it


def test_a_second_calibration_forgets_the_first():
    net, data = Net(), samples()
    calibrate(Denoiser(net), Samples(100 * data.noisy, data.timesteps, data.labels))
    calibrate(Denoiser(net), data)
    assert torch.allclose(net.second.step[0], grid(2 * data.noisy, 8)[0])
    assert not net.first._forward_pre_hooks


def test_rows_get_the_grids_of_their_own_timesteps_and_empty_ones_that_of_the_nearest():
    net, data = Net(edges=(0, 100, 500, 990)), samples()
    calibrate(Denoiser(net), data, per_row=True)
    rows = torch.bucketize(data.timesteps, net.first.edges, right=True) - 1
    assert rows.unique().tolist() == [0, 1, 2]
    for row in (0, 1, 2):
        step, zero = grid(data.noisy[rows == row])
        assert torch.allclose(net.first.step[row], step) and torch.equal(net.first.zero[row], zero)
    assert torch.equal(net.first.step[3], net.first.step[2])
    together = Net(edges=(0, 100, 500, 990))
    calibrate(Denoiser(together), data)
    assert (together.first.step == together.first.step[0]).all()


def test_heads_have_grids_of_their_own():
    net, data = Net(heads=2), samples()
    data.noisy[:, 1] *= 5
    calibrate(Denoiser(net), data, batch=16)
    assert torch.allclose(net.first.step[0], grid(data.noisy, dims=(0, 2, 3))[0])


def test_a_part_of_the_values_and_the_extremes_stand_for_all(monkeypatch):
    monkeypatch.setattr(module, "MOST", 300)
    monkeypatch.setattr(module, "FEWEST", 100)
    data = samples()
    net, again = Net(), Net()
    calibrate(Denoiser(net), data, batch=9)
    calibrate(Denoiser(again), data, batch=9)
    assert torch.equal(net.first.step, again.first.step)
    assert net.first.step.item() == pytest.approx(grid(data.noisy)[0].item(), rel=0.2)
