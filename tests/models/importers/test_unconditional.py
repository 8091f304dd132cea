"""Models without class labels, the importers' usual ones: they are sampled, exported, and refuse labels by name."""

import numpy as np
import onnxruntime
import pytest
import torch
from authors_files import inputs, lightning
from test_import_bidm import ARCH, bidm_state
from test_import_bidm_cifar import ARCH as CIFAR
from test_import_bidm_cifar import bidm_state as cifar_state

import edgedm
from edgedm.errors import UnsupportedError
from edgedm.inspection import inspect
from edgedm.models import load
from edgedm.models.importers import import_checkpoint

CLOSE = 1e-3  # float32 sums in another order through binary layers; outputs are about 1, no sign flips on this input


@pytest.fixture(scope="module", params=["bidm-ldm", "bidm-cifar"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    if request.param == "bidm-ldm":
        content, options = lightning(bidm_state(ARCH)), {"head_channels": 16, "connections": 3}
    else:
        content, options = [cifar_state(CIFAR)], {}
    torch.save(content, folder / "file.ckpt")
    import_checkpoint(folder / "file.ckpt", request.param, folder / "ckpt", weights="raw", image_size=8, **options)
    return folder / "ckpt"


def test_the_exported_graph_has_no_label_and_agrees_with_the_module(folder, tmp_path):
    edgedm.export(str(folder), str(tmp_path / "m.onnx"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    module = load(folder).module
    x, t = inputs(ARCH, timestep=501)
    state = [torch.full_like(each, 0.25) for each in module.zero_state(8, 8)]
    given = dict(zip(module.input_names, [x, t, torch.ones(1), *state], strict=True))
    assert {each.name for each in session.get_inputs()} == given.keys() and "class_labels" not in given
    with torch.no_grad():
        expected = module(*given.values())
    found = session.run(module.output_names, {name: value.numpy() for name, value in given.items()})
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=CLOSE, rtol=CLOSE)


def test_inspect_lists_a_table_for_every_mixed_module(folder):
    mixes = load(folder).module.mixes
    tables = [row["table"] for row in inspect(folder).details["tables"]["Per-timestep tables"]]
    names = [path if path == tap else f"{path} with {tap}" for path, tap in mixes.items()]
    assert names and tables == [f"cache_coefficients[{name}]" for name in names]


def test_torch_samples_it_and_refuses_labels_guidance_and_other_outputs(folder, tmp_path, monkeypatch):
    output = str(tmp_path / "images.npy")
    assert edgedm.sample(str(folder), output=output, n=1, steps=2).ok
    assert np.isfinite(np.load(output)).all()
    monkeypatch.setattr("edgedm.models.sample.draw_one", lambda *_: pytest.fail("drawn"))
    with pytest.raises(UnsupportedError, match=r"\.png or \.npy"):
        edgedm.sample(str(folder), output=str(tmp_path / "images.gif"), n=1, steps=2)
    for wrong in ({"label": 3}, {"guidance": 2.0}):
        with pytest.raises(UnsupportedError, match="unconditional"):
            edgedm.sample(str(folder), output=output, n=1, steps=2, **wrong)
