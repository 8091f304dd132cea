"""The manifest as that of each variant."""

import json

import numpy as np
import pytest

from edgedm.bundle import Manifest, load
from edgedm.bundle.limits import check_limits
from edgedm.errors import UnsupportedError
from edgedm.targets.android import PAGE_BYTES

HASH = "0" * 64


def several(tiny_bundle) -> dict:
    """A manifest that says of itself that it has a second variant."""
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    name, nodes = data["target"]["name"], data["nodes"][:2]
    target = {"name": "lesser", "features": [], "triple": "t"}
    data["others"] = [
        {"target": target, "arena_bytes": data["arena_bytes"], "kernel_bytes": 5, "nodes": nodes, "slow": ["a"]}
    ]
    data["sections"] = [
        {"offset": 0, "bytes": data["weights_bytes"], "sha256": HASH, "variants": [name, "lesser"]},
    ]
    return data


def test_it_describes_whichever_variant_is_asked_for(tiny_bundle):
    manifest = Manifest.model_validate(several(tiny_bundle))
    best = manifest.target.name
    assert manifest.of(best) is manifest
    lesser = manifest.of("lesser")
    assert (lesser.target.name, lesser.kernel_bytes, lesser.slow) == ("lesser", 5, ["a"])
    assert len(lesser.nodes) == 2
    assert (manifest.variants(), lesser.variants()) == ([best, "lesser"], ["lesser", best])
    assert lesser.of(best) == manifest
    with pytest.raises(UnsupportedError, match=f"'none': the bundle has {best}, lesser".replace("+", r"\+")):
        manifest.of("none")


def test_a_manifest_from_before_there_were_variants_has_one(tiny_bundle):
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    for name in ("others", "sections", "kernel_bytes"):
        del data[name]
    manifest = Manifest.model_validate(data)
    assert manifest.variants() == [load(tiny_bundle).manifest.target.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["others"].append(data["others"][0]), "stands twice"),
        (lambda data: data.update(slow=None), "not recorded"),
        (lambda data: data.update(sections=[]), "not recorded"),
        (lambda data: data["sections"][0].update(bytes=PAGE_BYTES << 20), "of weights"),
        (lambda data: data["sections"][0].update(variants=["none"]), "variants none of"),
        (lambda data: data["sections"][0].update(variants=[]), "expected one or more"),
        (lambda data: data["sections"][0].update(variants=["lesser", "lesser"]), "each once"),
        (lambda data: data["sections"].insert(0, {**data["sections"][0], "offset": 64, "bytes": 64}), "overlap"),
        (lambda data: data.update(others=[]), "variants lesser of"),
    ],
)
def test_one_that_contradicts_itself_is_refused(tiny_bundle, change, message):
    data = several(tiny_bundle)
    change(data)
    with pytest.raises(ValueError, match=message):
        Manifest.model_validate(data)


@pytest.mark.parametrize("reader", ["the first", "lesser"])
def test_a_variant_reads_no_constant_that_lies_outside_its_sections(tiny_bundle, reader):
    """Its bytes would neither be checked nor, where the weights are copied, be there."""
    data = several(tiny_bundle)
    check_limits(Manifest.model_validate(data))
    whole, names = data["sections"][0], data["sections"][0]["variants"]
    other = names[1 if reader == "the first" else 0]
    operands = [each for node in data["nodes"][:2] for each in node["inputs"] if each["source"] == "weights"]
    place = operands[0]["offset"]  # which both variants read
    around = [(0, place, names), (place, place + 1, [other]), (place + 1, whole["bytes"], names)]
    data["sections"] = [
        {"offset": start, "bytes": end - start, "sha256": HASH, "variants": readers}
        for start, end, readers in around
        if end > start
    ]
    with pytest.raises(ValueError, match=r"bytes \d+\.\.\d+ of weights lie in no section that it reads"):
        check_limits(Manifest.model_validate(data))


def test_a_constant_may_not_stretch_over_two_sections(tiny_bundle):
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    (whole,) = data["sections"]
    sizes = [each for node in data["nodes"] for each in node["inputs"] if each["source"] == "weights"]
    at = max(sizes, key=lambda each: np.prod(each["shape"]))["offset"] + 1
    data["sections"] = [{**whole, "bytes": at}, {**whole, "offset": at, "bytes": whole["bytes"] - at}]
    with pytest.raises(ValueError, match="lie in no section"):
        check_limits(Manifest.model_validate(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trained_timesteps": [5, -3]}, "trained_timesteps"),
        ({"trained_timesteps": [0, 2**40]}, "trained_timesteps"),
        ({"schedule": {"steps": 10**9, "sampler": "ddim"}}, "schedule: 1000000000 steps"),
        ({"null_class": 12, "classes": 3}, "null_class: 12"),
    ],
)
def test_a_schedule_or_class_that_no_model_has_is_refused(tiny_bundle, change, message):
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    last = {"trained_timesteps": [0, 36], "schedule": {"steps": 37, "sampler": "ddim"}, "null_class": 3, "classes": 3}
    check_limits(Manifest.model_validate({**data, **last}))
    with pytest.raises(ValueError, match=message):
        check_limits(Manifest.model_validate({**data, **change}))


def test_what_lies_in_strips_takes_of_the_arena_what_the_tasks_take(tiny_bundle):
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    node = next(node for node in data["nodes"] if node["outputs"][0]["source"] == "arena")
    room = 2 * 64  # of two tasks, each with a unit of a head and 4 rows of 4 numbers
    operand = {**node["outputs"][0], "source": "strips", "shape": [1, 8, 8, 4], "dtype": "float32"}
    node["strips"] = {"first": node["index"], "heads": 8, "strips": 2, "tasks": 2}
    node["outputs"] = [{**operand, "offset": data["arena_bytes"] - room}]
    check_limits(Manifest.model_validate(data))
    node["outputs"] = [{**operand, "offset": data["arena_bytes"] - room + 1}]
    with pytest.raises(ValueError, match="of strips"):
        check_limits(Manifest.model_validate(data))
    node["strips"]["strips"] = 3
    with pytest.raises(ValueError, match="1024 bytes in 8 x 3 strips"):
        check_limits(Manifest.model_validate(data))
    node["strips"] = None
    with pytest.raises(ValueError, match="lies in strips, but the node is of no chain"):
        check_limits(Manifest.model_validate(data))
