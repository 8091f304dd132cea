"""Sizes: what is counted, against what, and what fills it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_model
from test_bound import manifest, node, operand

from edgedm.bench.sizes import constants, float32_bytes, parts, sizes
from edgedm.bundle import load
from edgedm.bundle.store import LIBRARY
from edgedm.errors import InvalidModelError
from edgedm.models.preset_checkpoint import preset_config, read_reference


@pytest.mark.parametrize("method", ["fp32", "bidm"])
def test_the_float32_size_is_that_of_the_architectures_parameters(method):
    config = preset_config(read_reference(f"preset:ddpm-cifar10,method={method}")).model_dump(mode="json")
    # google/ddpm-cifar10-32, in whatever bits it is trained
    assert float32_bytes(config, Path("config.json")) == 4 * 35_746_307


def test_without_an_architecture_there_is_no_ratio():
    assert float32_bytes({"method": "?"}, Path("config.json")) is None


def test_shipped_is_less_than_the_bundle():
    figures = sizes(load(tiny_model.folder() / "model.bundle"))
    assert 0 < figures["bytes.shipped"] < figures["bytes.bundle"]


def test_a_constant_is_counted_once_under_its_first_reader():
    made = manifest(
        node(0, "Conv", "", 0, [operand("weights", 10, offset=0), operand("input", 5)], [operand("arena", 1)]),
        node(1, "Gemm", "", 0, [operand("weights", 10, offset=0), operand("weights", 3, offset=64)], []),
    )
    assert constants(made) == {("step: Conv", "float32"): 40, ("step: Gemm", "float32"): 12}


def test_parts_add_up_to_what_ships():
    bundle = load(tiny_model.folder() / "model.bundle")
    rows = parts(bundle)
    assert sum(row["bytes"] for row in rows) == sizes(bundle)["bytes.shipped"]
    assert math.isclose(sum(row["share"] for row in rows), 1.0)
    assert rows == sorted(rows, key=lambda row: -row["bytes"])


def test_a_bundle_without_its_library_or_with_a_config_of_no_checkpoint_is_refused():
    whole = load(tiny_model.folder() / "model.bundle")
    files = {name: entry for name, entry in whole.manifest.files.items() if name != LIBRARY}
    with pytest.raises(InvalidModelError, match=f"no {LIBRARY}"):
        sizes(replace(whole, manifest=whole.manifest.model_copy(update={"files": files})))
    strange = {**whole.manifest.config, "architecture": {"class_name": "UNet2DModel", "config": {}}, "method": 7}
    with pytest.raises(InvalidModelError, match=r"model\.bundle/manifest\.json: the checkpoint's config: "):
        sizes(replace(whole, manifest=whole.manifest.model_copy(update={"config": strange})))
