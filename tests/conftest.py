"""What every test may use: no network, the real 1-bit model through the whole pipeline once a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from edgedm import progress

settings.register_profile("edgedm", deadline=None)  # a deadline tells how busy the machine is
settings.load_profile("edgedm")


@pytest.fixture(autouse=True)
def silent(monkeypatch) -> None:
    """A verb that a test runs in this process must not leave the progress bars on for the tests after it."""
    monkeypatch.setattr(progress, "enabled", False)


@pytest.fixture(scope="session", autouse=True)
def bundles_are_compiled_anew(tmp_path_factory) -> Iterator[None]:
    """No test, nor a program that it starts, takes a bundle from the user's cache or leaves one there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEDM_BUNDLE_CACHE", str(tmp_path_factory.mktemp("bundles")))
        yield


@pytest.fixture(scope="session")
def digits_pipeline(tmp_path_factory) -> Path:
    """Export, optimise and compile `zoo:digits-bidm-w1a1`: a folder with model.onnx, deploy.onnx, model.bundle."""
    import edgedm

    folder = tmp_path_factory.mktemp("digits")
    edgedm.export("zoo:digits-bidm-w1a1", folder / "model.onnx")
    edgedm.optimize(folder / "model.onnx", folder / "deploy.onnx")
    edgedm.compile(folder / "deploy.onnx", folder / "model.bundle")
    return folder


@pytest.fixture(scope="session")
def digits_bundle(digits_pipeline) -> Path:
    return digits_pipeline / "model.bundle"
