"""`--dry-run` and `--describe`: what is said about a training, held against the training and its checkpoint."""

import dataclasses

import pytest
from small_runs import SIZE, small_base

from edgedm.errors import UnsupportedError
from edgedm.models import save
from edgedm.models.roles import ROLES
from edgedm.quant.policy import POLICIES, policy_of
from edgedm.training.plan import describe, plan
from edgedm.training.recipes import RECIPES
from edgedm.training.run import run_method


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "ckpt"
    save(small_base(), folder)
    return folder


def test_a_plan_lists_every_layer_with_its_bits_and_the_policys_reason(base, tmp_path):
    outcome = plan(base, "lsq", policy_of("lsq", nominal="W6A6"))
    rows = {row["layer"]: row for row in outcome.details["tables"]["Layers"]}
    conv = rows["down_blocks.0.resnets.0.conv1"]
    assert (conv["role"], conv["bits"], conv["in"], conv["out"], conv["kernel"]) == ("res_conv", "W6A6", 8, 8, "3x3")
    assert conv["parameters"] == 8 * 8 * 9 + 8 and conv["macs"] == 8 * 8 * 9 * SIZE * SIZE
    assert conv["why"] == policy_of("lsq").reasons["res_conv"]
    linear = rows["time_embedding.linear_1"]
    assert (linear["bits"], linear["macs"], linear["kernel"]) == ("W8A8", 8 * 32, "1")
    products = rows["mid_block.attentions.0"]
    assert (products["role"], products["bits"]) == ("attn_matmul", "float")
    assert products["macs"] == 2 * (SIZE // 2) ** 4 * 16
    assert outcome.figures["macs.W8A8"] == sum(row["macs"] for row in rows.values() if row["bits"] == "W8A8")
    assert list(tmp_path.iterdir()) == []


def test_the_planned_bytes_are_those_of_the_checkpoint(base, tmp_path):
    loop = dataclasses.replace(RECIPES["bidm"].loop, iterations=1, batch=2)
    planned = plan(base, "bidm", loop=loop).figures
    save(run_method(small_base(), "bidm", tmp_path / "run", loop=loop).checkpoint, tmp_path / "ckpt")
    content = (tmp_path / "ckpt" / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == planned["bytes.result"] < planned["bytes.base"]


def test_a_plan_is_refused_as_the_training_would_be(base):
    with pytest.raises(UnsupportedError, match="trains on images"):
        plan(base, "bidm", data="none")
    with pytest.raises(UnsupportedError, match="colour"):
        plan(base, "bidm", options={"colour": 1})
    with pytest.raises(UnsupportedError, match="--ema 0"):
        plan(base, "dilatequant", loop=dataclasses.replace(RECIPES["dilatequant"].loop, ema_decay=0.9))


@pytest.mark.parametrize("method", RECIPES)
def test_every_method_describes_its_training_its_options_and_its_policies(method):
    details = describe(method).details
    assert details["summary"]["training"].endswith(".")
    policies = [title for title in details["tables"] if title.startswith("Policy ")]
    assert len(policies) == len(POLICIES[method])
    for title in policies:
        rows = details["tables"][title]
        assert [row["role"] for row in rows] == list(ROLES)
        assert all(row["why"] for row in rows if row["bits"] != "float")


def test_options_are_described_with_what_they_take_and_the_default():
    rows = {row["option"]: row for row in describe("ptq").details["tables"]["Options (--option NAME=VALUE)"]}
    assert rows["weights"]["takes"] == "mse or minmax" and rows["weights"]["default"] == "mse"
    assert rows["images"]["takes"] == "a whole number, at least 1"


def test_an_unknown_method_is_not_described():
    with pytest.raises(UnsupportedError, match="bidm"):
        describe("magic")
