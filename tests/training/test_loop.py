"""The training loop: rates, averages, curves, and going on where a killed run stopped."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_stage import Toy, stage, states

import edgedm.training.loop as loop_module
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.training.loop import learning_rate_factor, train, update_ema
from edgedm.training.options import LoopOptions
from edgedm.training.state import DivergedError

TOY = Path(__file__).with_name("toy_stage.py")
LONG = 150  # iterations: seconds, most of them spent saving


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def timeless(curve):
    return [{key: value for key, value in point.items() if key != "seconds"} for point in curve]


def test_the_learning_rate_warms_up_and_falls_to_zero():
    options = LoopOptions(1000, 1e-3, warm_up=100)
    factors = [learning_rate_factor(i, options) for i in range(1001)]
    assert factors[0] == 0.01 and factors[99] == 1 and factors[1000] == pytest.approx(0)
    assert max(factors) == 1 and factors[550] == pytest.approx(0.5)


def test_the_average_moves_by_the_ramped_decay():
    ema, model = nn.Linear(2, 2), nn.Linear(2, 2)
    before, after = ema.weight.detach().clone(), model.weight.detach()
    update_ema(ema, model, 0.9, iteration=2)  # the ramp: 3 / 12
    torch.testing.assert_close(ema.weight.detach(), 0.25 * before + 0.75 * after)
    before = ema.weight.detach().clone()
    update_ema(ema, model, 0.9, iteration=1000)
    torch.testing.assert_close(ema.weight.detach(), 0.9 * before + 0.1 * after)


def test_a_first_step_is_adamw_by_hand(tmp_path):
    objective = Toy()
    before = objective.student[0].weight.detach().clone()
    train(stage(objective, iterations=1, ema_decay=0.0, warm_up=0, clip_norm=1e9), tmp_path)
    step = objective.student[0].weight.detach() - before
    # after one step the moments cancel: every weight with a gradient moves by the rate
    assert torch.allclose(step.abs(), torch.full_like(step, 1e-2), atol=1e-6)
    assert torch.equal(objective.idle, torch.ones(2))


def test_the_curve_has_means_and_is_written_beside_the_state(tmp_path):
    _, curve = train(stage(iterations=120), tmp_path)
    assert [point["iteration"] for point in curve] == [50, 100, 120]
    assert curve[-1]["loss"] < curve[0]["loss"] and curve[0]["idle"] == 2 and curve[0]["gradient_norm"] > 0
    assert json.loads((tmp_path / "curve.json").read_text())["curve"] == curve


def test_no_iterations_train_nothing_and_write_nothing(tmp_path):
    objective = Toy()
    trained, curve = train(stage(objective, iterations=0, ema_decay=0.0), tmp_path)
    assert trained is objective.student and curve == [] and list(tmp_path.iterdir()) == []


def test_the_global_generator_is_left_alone(tmp_path):
    prepared = stage()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(prepared, tmp_path)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("iteration", [0, 1, 3, 4, 6])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, iteration):
    class Dying(Toy):
        def forward(self, at, generator):
            if at == iteration:
                raise RuntimeError("killed")
            return super().forward(at, generator)

    once, curve = train(stage(iterations=7), tmp_path / "once")
    with pytest.raises(RuntimeError, match="killed"):
        train(stage(Dying(), iterations=7), tmp_path / "twice")
    resumed, again = train(stage(iterations=7), tmp_path / "twice")
    assert same(once.state_dict(), resumed.state_dict()) and timeless(curve) == timeless(again)
    assert same(states(tmp_path / "once"), states(tmp_path / "twice"))


def test_a_finished_stage_is_not_trained_again(tmp_path, monkeypatch):
    once, curve = train(stage(), tmp_path)
    monkeypatch.setattr(loop_module, "_run", None)
    resumed, again = train(stage(), tmp_path)
    assert same(once.state_dict(), resumed.state_dict()) and curve == again
    assert torch.load(tmp_path / "state.pt", weights_only=True)["optimiser"] is None


def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(tmp_path):
    moments = random.Random(0)
    expected, _ = train(stage(iterations=LONG, save_every=1), tmp_path / "once")
    command = [sys.executable, str(TOY), str(tmp_path / "killed"), str(LONG)]
    for _ in range(2):
        running = subprocess.Popen(command)
        began = (tmp_path / "killed" / "state.pt").exists()
        while not began and running.poll() is None:
            time.sleep(0.01)
            began = (tmp_path / "killed" / "state.pt").exists()
        time.sleep(moments.uniform(0, 0.5))
        running.kill()
        running.wait()
    reached = torch.load(tmp_path / "killed" / "state.pt", weights_only=True)["iteration"]
    assert reached > 0
    resumed, _ = train(stage(iterations=LONG, save_every=1), tmp_path / "killed")
    assert same(expected.state_dict(), resumed.state_dict())


def test_a_state_of_other_settings_is_refused_and_names_them(tmp_path):
    train(stage(), tmp_path, identity={"method": "bidm", "data": "digits"})
    with pytest.raises(UnsupportedError, match=r"seed was 0, is 1.*--restart"):
        train(stage(seed=1), tmp_path, identity={"method": "bidm", "data": "digits"})
    with pytest.raises(UnsupportedError, match="data was digits, is absent; method was bidm, is xnor"):
        train(stage(), tmp_path, identity={"method": "xnor"})
    train(stage(save_every=5), tmp_path, identity={"method": "bidm", "data": "digits"})  # decides no result


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_state_is_refused(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"state\.pt.*--restart"):
        train(stage(), tmp_path)


def test_a_state_of_another_model_is_refused(tmp_path):
    train(stage(), tmp_path)
    other = Toy()
    other.student = nn.Linear(4, 4)
    with pytest.raises(InvalidModelError, match=r"state\.pt"):
        train(stage(other), tmp_path)


def test_numbers_that_are_not_finite_stop_training_before_they_are_saved(tmp_path):
    class Exploding(Toy):
        def forward(self, at, generator):
            terms = super().forward(at, generator)
            return terms if at < 2 else {**terms, "loss": terms["loss"] * float("inf")}

    with pytest.raises(DivergedError, match=r"toy: .* between iterations 0 and 4.*--learning-rate"):
        train(stage(Exploding()), tmp_path)
    assert all(torch.isfinite(value).all() for value in states(tmp_path).values())
    assert isinstance(DivergedError("x"), FloatingPointError)


def test_only_what_is_learned_counts_for_clipping(tmp_path):
    class Loud(Toy):
        def __init__(self):
            super().__init__()
            self.loud = nn.Parameter(torch.ones(1))

        def parameter_groups(self, learning_rate):
            return [{"params": list(self.student.parameters()), "lr": learning_rate}]

        def forward(self, at, generator):
            terms = super().forward(at, generator)
            return {"loss": terms["loss"] + 1e6 * self.loud.sum()}

    _, loud = train(stage(Loud()), tmp_path / "loud")
    _, quiet = train(stage(Toy()), tmp_path / "quiet")
    assert loud[-1]["gradient_norm"] == quiet[-1]["gradient_norm"]


def test_logs_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(stage(iterations=60), tmp_path / "run", log=tmp_path / "log")
    events = EventAccumulator(str(tmp_path / "log" / "toy")).Reload()
    assert {"loss", "gradient_norm", "samples_per_second"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [50, 60]
