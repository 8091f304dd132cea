"""The manifest as that of each variant."""

import json

import pytest

from edgedm.bundle import Manifest, load
from edgedm.errors import UnsupportedError
from edgedm.lower.weights import PAGE

HASH = "0" * 64


def several(tiny_bundle) -> dict:
    """A manifest that says of itself that it has a second variant."""
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    name, nodes = data["target"]["name"], data["nodes"][:2]
    target = {"name": "lesser", "features": [], "triple": "t"}
    data["others"] = [{"target": target, "arena_bytes": 64, "kernel_bytes": 5, "nodes": nodes, "slow": ["a"]}]
    data["sections"] = [
        {"offset": 0, "bytes": 64, "sha256": HASH, "variants": [name, "lesser"]},
        {"offset": 64, "bytes": 64, "sha256": HASH, "variants": ["lesser"]},
    ]
    return data


def test_it_describes_whichever_variant_is_asked_for(tiny_bundle):
    manifest = Manifest.model_validate(several(tiny_bundle))
    best = manifest.target.name
    assert manifest.of(best) is manifest
    lesser = manifest.of("lesser")
    assert (lesser.target.name, lesser.arena_bytes, lesser.kernel_bytes, lesser.slow) == ("lesser", 64, 5, ["a"])
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
        (lambda data: data["sections"][1].update(bytes=PAGE << 20), "of weights"),
        (lambda data: data["sections"][1].update(variants=["none"]), "variants none of"),
    ],
)
def test_one_that_contradicts_itself_is_refused(tiny_bundle, change, message):
    data = several(tiny_bundle)
    change(data)
    with pytest.raises(ValueError, match=message):
        Manifest.model_validate(data)
