"""Tiny models compiled for WebAssembly, their pages, and a browser."""

from pathlib import Path

import browser
import pytest
import tiny_latent
import tiny_model

from edgedm.export.decoder_file import DECODER_ROLES, decoder_path
from edgedm.export.graph_io import GraphInfo, save_graph, set_graph_info
from edgedm.lower import compile as compile_graph
from edgedm.web import TARGET, web

LATENT_STEP = """<ir_version: 10, opset_import: ["" : 21]>
step (float[1,2,4,4] x, float[1,2] "row.1") => (float[1,2,4,4] eps)
{
  first = Conv <pads = [1,1,1,1]> (x, w_in, b_in)
  wide = Unsqueeze ("row.1", tail)
  eps = Add (first, wide)
}"""

LATENT_PREPARE = """<ir_version: 10, opset_import: ["" : 21]>
prepare (int64[1] timestep) => (float[1,2] "row.1")
{
  time = Cast <to = 1> (timestep)
  "row.1" = Mul (time, per_thousand)
}"""


@pytest.fixture(scope="session")
def wasm_bundle(tmp_path_factory) -> Path:
    bundle = tmp_path_factory.mktemp("wasm") / "tiny.bundle"
    compile_graph(tiny_model.folder() / "deploy.onnx", bundle, target=TARGET, steps=10)
    return bundle


@pytest.fixture(scope="session")
def latent_bundle(tmp_path_factory) -> Path:
    """The tiny latent model without its text condition."""
    folder = tmp_path_factory.mktemp("latent")
    texts = (LATENT_STEP, LATENT_PREPARE, tiny_latent.DECODER)
    step, prepare, decoder = (tiny_model.model(text, tiny_latent.constants()) for text in texts)
    config = {name: value for name, value in tiny_latent.CONFIG.items() if name != "condition_tokens"}
    config["architecture"] = {"config": {}}
    set_graph_info(step, GraphInfo("deployed", config, {"x": "x", "row.1": "row"}))
    set_graph_info(prepare, GraphInfo("prepare", config, {"timestep": "timestep"}))
    set_graph_info(decoder, GraphInfo("decoder", config, DECODER_ROLES))
    path = folder / "deploy.onnx"
    save_graph(step, path)
    save_graph(prepare, path.with_suffix(".prepare.onnx"))
    save_graph(decoder, decoder_path(path))
    compile_graph(path, folder / "latent.bundle", target=TARGET, steps=10)
    return folder / "latent.bundle"


@pytest.fixture(scope="session")
def pages(wasm_bundle, latent_bundle, tmp_path_factory) -> Path:
    """A folder with tiny.html and latent.html."""
    folder = tmp_path_factory.mktemp("pages")
    web(wasm_bundle, folder / "tiny.html", title="Tiny <model>")
    web(latent_bundle, folder / "latent.html")
    return folder


@pytest.fixture(scope="session")
def site(pages):
    with browser.served(pages) as address:
        yield address


@pytest.fixture(scope="module")
def driver():
    with browser.browser() as found:
        yield found
