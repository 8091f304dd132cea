"""The reference's own inputs of a lowered graph: a moment of a torch trajectory in the graph's layout."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.verify.graphs import Graph
from edgedm.verify.torch_reference import Moment

Array = NDArray[Any]


def teacher_feeds(graphs: Mapping[str, Graph], moment: Moment, image: int) -> dict[str, dict[str, Array]]:
    """Feeds of the graphs "prepare", "step" and "decoder" for one image of `moment`; rows come from prepare on ORT."""
    given: dict[str, Array] = {
        "timestep": np.array([moment.timestep], np.int64),
        "class_labels": moment.labels[image : image + 1],
        "x": moment.x[image : image + 1],
        "has_state": np.array([float(moment.has_state)], np.float32),
    }
    if moment.texts is not None:
        given["encoder_hidden_states"] = moment.texts[image : image + 1]
    prepare = {name: given[name] for name in graphs["prepare"].inputs}
    given |= graphs["prepare"].run(prepare)
    states = iter(moment.state)
    step = {}
    for name in graphs["step"].inputs:
        if not name.startswith("state."):
            step[name] = given[name]
        elif moment.has_state:
            step[name] = np.ascontiguousarray(np.moveaxis(next(states)[image : image + 1], 1, -1))
        else:
            step[name] = np.zeros(graphs["step"].shape(name), np.float32)
    decoder = {"decoder": {"latent": given["x"]}} if "decoder" in graphs else {}
    return {"prepare": prepare, "step": step, **decoder}
