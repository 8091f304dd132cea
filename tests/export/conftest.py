"""One export of every method, shared by this folder's tests."""

from types import SimpleNamespace

import pytest
from small_models import ROLES, small_checkpoint


@pytest.fixture(scope="session", params=sorted(ROLES))
def exported(request, tmp_path_factory) -> SimpleNamespace:
    """One export per method: .method, .path, .outcome, .module (the torch model)."""
    from edgedm.export import export

    checkpoint = small_checkpoint(request.param)
    path = tmp_path_factory.mktemp("export") / f"{request.param}.onnx"
    outcome = export(checkpoint, path, layer_golden=True)
    return SimpleNamespace(method=request.param, path=path, outcome=outcome, module=checkpoint.module)
