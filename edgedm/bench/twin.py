"""A bundle's full-precision twin: the same architecture with seeded weights, as the files that the peers read.

No runtime runs the low-bit model, so peers run what a user has today: the float32 model, or its int8 quantisation by
the runtime's own tools. Speed does not depend on the weights' values. Files are made when a peer first asks for them
and serve every peer and number of threads of a run.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm import progress
from edgedm.atomic import atomic_file
from edgedm.errors import EdgedmError, ToolchainError, UnsupportedError

CONFIG, INPUTS, FP32, INT8 = "config.json", "inputs.npz", "fp32.onnx", "int8.onnx"
CALIBRATION_SAMPLES = 4
_LAST_TIMESTEP = 999
_CLASSES = ("UNet2DModel", "UNet2DConditionModel")

Feeds = dict[str, NDArray[Any]]


class Twin:
    """The twin of the model that `config` (of a checkpoint, as in a bundle's manifest) describes, in `folder`."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        found = config.get("architecture", {}).get("class_name")
        if found not in _CLASSES:
            raise UnsupportedError(
                f"bench: no full-precision twin of {found}; peers need a {' or '.join(_CLASSES)} (or --against none)"
            )
        self.folder, self._config = folder, full_precision(config)
        (folder / CONFIG).write_text(json.dumps(self._config))
        np.savez(folder / INPUTS, **next(feeds(self._config, 1)))  # type: ignore[arg-type]  # names, not options

    def need(self, name: str) -> Path:
        """Return the file `name`, made now unless it is there. Raises ToolchainError where its maker fails."""
        path = self.folder / name
        if not path.exists():
            make = {FP32: self._export, INT8: self._quantize}[name]
            try:
                with atomic_file(path) as scratch:
                    make(scratch)
            except EdgedmError:
                raise
            except Exception as error:  # whatever an exporter or a quantiser that is not ours comes upon
                why = f"{type(error).__name__}: {error}"
                raise ToolchainError(f"bench: cannot make {name} of the full-precision twin: {why}") from error
        return path

    def _export(self, path: Path) -> None:
        from edgedm.export.golden import example_inputs
        from edgedm.export.graph_io import serialize_graph
        from edgedm.export.to_onnx import build_graph
        from edgedm.models import CheckpointConfig, build

        progress.stage("exporting the full-precision twin")
        module = build(CheckpointConfig.model_validate(self._config), seed=0).module
        path.write_bytes(serialize_graph(build_graph(module, example_inputs(module, image_shape(self._config), 0))))

    def _quantize(self, path: Path) -> None:
        """Static int8 by ONNX Runtime: QDQ, weights per channel, ranges from seeded noise.

        Activations are unsigned, the form that ONNX Runtime multiplies fastest on x86; with signed ones 1.31 fails to
        load the file (a QuantizeLinear that it moves itself gets the wrong type). Convolutions and matrix products
        are quantised; what stands between them stays float, which is faster than dequantising around every addition.
        """
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        progress.stage("quantising the twin to int8 (ONNX Runtime, static, per channel)")
        with _without_warnings():
            quantize_static(
                self.need(FP32),
                path,
                _Reader(feeds(self._config, CALIBRATION_SAMPLES)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            )


def full_precision(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the same architecture in float32, nothing carried from step to step, no decoder."""
    from edgedm.models.roles import FLOAT

    plain: dict[str, Any] = {
        "method": "fp32",
        "roles": FLOAT,
        "taps": [],
        "mixes": {},
        "timestep_bins": [],
        "options": {},
        "decoder": None,
    }
    return {**config, **{name: value for name, value in plain.items() if name in config or name in ("method", "roles")}}


def image_shape(config: dict[str, Any]) -> tuple[int, int, int]:
    """Channels, height and width of the model's image."""
    architecture = config["architecture"]["config"]
    size = architecture["sample_size"]
    return int(architecture["in_channels"]), int(size), int(size)


def feeds(config: dict[str, Any], count: int) -> Iterator[Feeds]:
    """Seeded inputs by name, at timesteps spread over the trained ones; class labels only where there are classes."""
    rng = np.random.default_rng(0)
    for timestep in np.linspace(_LAST_TIMESTEP, 0, count).astype(np.int64):
        feed: Feeds = {
            "x": rng.standard_normal((1, *image_shape(config)), dtype=np.float32),
            "timestep": timestep.reshape(1),
        }
        if config["architecture"]["config"].get("num_class_embeds"):
            feed["class_labels"] = np.zeros(1, np.int64)
        if config.get("condition_tokens"):
            size = int(config["architecture"]["config"]["cross_attention_dim"])
            feed["encoder_hidden_states"] = rng.standard_normal((1, config["condition_tokens"], size), np.float32)
        yield feed


def read_feeds(folder: Path) -> Feeds:
    """The inputs that every peer runs on."""
    with np.load(folder / INPUTS) as file:
        return {name: file[name] for name in file.files}


class _Reader:
    """`CalibrationDataReader` by its one method."""

    def __init__(self, inputs: Iterator[Feeds]) -> None:
        self._inputs = inputs

    def get_next(self) -> Feeds | None:
        return next(self._inputs, None)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """The quantiser recommends a pre-processing that splits GroupNormalization, on the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
