"""ONNX Runtime as the reference: one thread, every optimisation off."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from edgedm.errors import InvalidModelError

_ERRORS = tuple(
    each for each in vars(onnxruntime_pybind11_state).values() if isinstance(each, type) and issubclass(each, Exception)
)
"""ONNX Runtime's own; they have no base in common."""


class OnnxSession:
    """ONNX Runtime on one model; `names` renames its outputs, in order.

    Raises InvalidModelError for a model that it refuses, when it is opened or when it is run.
    """

    def __init__(self, model: onnx.ModelProto, names: Sequence[str] | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except _ERRORS as error:
            raise _refused(error) from error
        self.inputs = {each.name: tuple(each.shape) for each in self._session.get_inputs()}
        self.outputs = list(names) if names is not None else [item.name for item in model.graph.output]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs by name, for `feeds` that hold every input (others are ignored)."""
        try:
            results = self._session.run(None, {name: np.asarray(feeds[name]) for name in self.inputs})
        except _ERRORS as error:
            raise _refused(error) from error
        return dict(zip(self.outputs, results, strict=True))


def _refused(error: Exception) -> InvalidModelError:
    return InvalidModelError(f"ONNX Runtime cannot run the graph: {' '.join(str(error).split())}; export it again")
