"""The tiny model for Android's ABIs, each compiled once a session."""

from pathlib import Path

import pytest
import tiny_model

from edgedm.lower import compile as compile_graph

TARGETS = {"arm64-v8a": "android-arm64", "armeabi-v7a": "android-armv7+neon", "x86_64": "android-x86_64"}


@pytest.fixture(scope="session")
def arm64_bundle(tmp_path_factory) -> Path:
    return _compiled("arm64-v8a", tmp_path_factory)


@pytest.fixture(scope="session")
def android_bundles(arm64_bundle, tmp_path_factory) -> dict[str, Path]:
    """By ABI."""
    others = {abi: _compiled(abi, tmp_path_factory) for abi in TARGETS if abi != "arm64-v8a"}
    return {"arm64-v8a": arm64_bundle, **others}


def _compiled(abi: str, factory) -> Path:
    bundle = factory.mktemp(abi) / "model.bundle"
    compile_graph(tiny_model.folder() / "deploy.onnx", bundle, target=TARGETS[abi], steps=10)
    return bundle
