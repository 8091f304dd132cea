"""The verb `export`: checkpoint -> graph and golden data."""

import json
import os
import time
from pathlib import Path

from edgedm import progress
from edgedm.atomic_files import write_together
from edgedm.diffusion import NoiseSchedule
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export import golden
from edgedm.export.decoder_file import DECODER_ROLES, decoder_path
from edgedm.export.graph_io import GraphInfo, serialize_graph, set_graph_info
from edgedm.export.to_onnx import build_decoder_graph, build_graph
from edgedm.models import Checkpoint, load
from edgedm.outcome import Outcome

EXPORTED = ("UNet2DModel", "UNet2DConditionModel")
_PACKED = (".bits", ".codes")  # names of weights at their real width
_GOLDEN_LABEL = 7  # or the last class of a model with fewer


def run(checkpoint: Checkpoint | str | os.PathLike[str], output: str | os.PathLike[str], layers: bool) -> Outcome:
    """See `edgedm.export`."""
    started = time.perf_counter()
    output = Path(output)
    if output.suffix != ".onnx":
        raise InvalidModelError(f"{output}: expected a file name that ends in .onnx")
    progress.stage("loading the checkpoint")
    loaded = load(os.fspath(checkpoint)) if isinstance(checkpoint, str | os.PathLike) else checkpoint
    if not isinstance(loaded, Checkpoint):
        raise UnsupportedError(
            f"{type(loaded).__name__}: export takes a checkpoint (a folder, zoo:NAME, preset:NAME or an "
            "edgedm.models.Checkpoint), which also says the noise schedule and the method of the layers"
        )
    module, config = loaded.module.eval().requires_grad_(False), loaded.config
    if config.architecture.class_name not in EXPORTED:
        raise UnsupportedError(
            f"{config.architecture.class_name} cannot be exported yet, only {' and '.join(EXPORTED)}; it can be "
            "quantised and trained in PyTorch (edgedm.quantize(model, method))"
        )
    config.check_condition()
    schedule = _noise_schedule(loaded, checkpoint)
    shape = config.image_shape
    label = max(0, min(_GOLDEN_LABEL, (config.null_class or 0) - 1))

    progress.stage("tracing the model")
    inputs = golden.example_inputs(module, shape, label)
    model = build_graph(module, inputs)
    roles = {name: "state" if name.startswith("state.") else name for name in inputs}
    set_graph_info(model, GraphInfo("exported", config.model_dump(mode="json"), roles))
    recorded = golden.record(module, schedule, shape, label, layers, loaded.decoder)

    files = {output: serialize_graph(model), **golden.files(recorded, output)}
    decoder = None
    if loaded.decoder is not None:
        progress.stage("tracing the decoder")
        decoder = build_decoder_graph(loaded.decoder, shape)
        set_graph_info(decoder, GraphInfo("decoder", config.model_dump(mode="json"), DECODER_ROLES))
        files[decoder_path(output)] = serialize_graph(decoder)
    write_together(files)
    weights = {name: value.const_value.nbytes for name, value in model.graph.initializers.items() if value.const_value}
    figures = {
        "bytes.file": float(len(files[output])),
        "bytes.weights": float(sum(weights.values())),
        "bytes.weights.packed": float(sum(size for name, size in weights.items() if name.endswith(_PACKED))),
        "nodes": float(len(model.graph)),
        "functions": float(len(model.functions)),
        "golden.steps": float(len(json.loads(recorded.metadata["golden_steps"]))),
        "seconds": time.perf_counter() - started,
    }
    if decoder is not None:
        figures |= {
            "bytes.decoder": float(len(files[decoder_path(output)])),
            "nodes.decoder": float(len(decoder.graph)),
        }
    return Outcome(True, figures, {"written": [str(path) for path in files]})


def _noise_schedule(loaded: Checkpoint, origin: Checkpoint | str | os.PathLike[str]) -> NoiseSchedule:
    try:
        return NoiseSchedule.from_config(loaded.config.noise_schedule)
    except UnsupportedError as error:
        where = "" if isinstance(origin, Checkpoint) else f"{os.fspath(origin)}: "
        raise UnsupportedError(f"{where}{error}") from error
