"""Find the pass after which a model leaves tolerance, by binary search over the graphs between the passes.

The graphs are made again from the checkpoint's own export, as many passes as are asked for, or read from a folder that
`edgedm optimize --dump` wrote, which must be of the same checkpoint. A search over n passes looks at about log2(n)
graphs, each of which is made anew: no more than one of them is in memory, or on disk, at a time.
"""

import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgedm import progress
from edgedm.errors import InvalidModelError, ParityError
from edgedm.export import export
from edgedm.export.decoder_file import decoder_path
from edgedm.export.graph_io import graph_info, load_graph, save_graph
from edgedm.models import Checkpoint
from edgedm.passes.check import Checker
from edgedm.passes.pipeline import PIPELINE, Schedule
from edgedm.passes.regions import Feeds, Side
from edgedm.passes.split_prepare import PREPARE

Holds = Callable[[Path], bool]


class Chain(ABC):
    """Graphs in the order in which they were made; number 0 is the exported one."""

    names: Sequence[str]  # of what made each: "export", then the passes

    @abstractmethod
    def graph(self, number: int) -> Path:
        """The file of a graph; of the last one its prepare graph stands beside it."""

    def region(self, _number: int, _feeds: Feeds) -> str:
        """What the pass that made graph `number` changed beyond rounding, in words; "" where that cannot be told."""
        return ""


class Rerun(Chain):
    """The pipeline once more, on a fresh export of a checkpoint, in `folder`."""

    def __init__(self, against: Checkpoint | str, schedule: Schedule, folder: Path) -> None:
        self.folder, self.schedule = folder, schedule
        self.exported = folder / "exported.onnx"
        progress.stage("exporting the checkpoint again, to find what broke parity")
        export(against, self.exported)
        self.names = ["export", *(make(schedule).name for make in PIPELINE)]

    def model(self, number: int) -> ir.Model:
        """The model after `number` passes."""
        model = load_graph(self.exported)
        for make in PIPELINE[:number]:
            make(self.schedule)(model)
        return model

    def graph(self, number: int) -> Path:
        """The model after `number` passes, as a file that the next one replaces."""
        if number == 0:
            return self.exported
        model, path = self.model(number), self.folder / "prefix.onnx"
        save_graph(model, path)
        if PREPARE in model.meta:
            save_graph(model.meta[PREPARE], path.with_suffix(".prepare.onnx"))
        if decoder_path(self.exported).is_file():
            shutil.copyfile(decoder_path(self.exported), decoder_path(path))
        return path

    def region(self, number: int, feeds: Feeds) -> str:
        """The first value that the pass changes by more than rounding explains."""
        model, each = self.model(number - 1), PIPELINE[number - 1](self.schedule)
        before = Side(model)
        each(model)
        try:
            Checker([feeds]).check(each, before, model)
        except ParityError as error:
            return str(error)
        return ""


class Dumped(Chain):
    """The folder that `edgedm optimize --dump` wrote: NN-Name.onnx, the exported graph as 00."""

    def __init__(self, folder: Path) -> None:
        found = sorted(path for path in folder.glob("*.onnx") if re.fullmatch(r"\d{2}-\w+\.onnx", path.name))
        numbers = [int(path.name[:2]) for path in found]
        if len(found) < 2 or numbers != list(range(len(found))):
            raise InvalidModelError(
                f"{folder}: expected the graphs of `edgedm optimize --dump` (00-exported.onnx, 01-..., one a pass), "
                f"found {[path.name for path in found][:3]}"
            )
        self.files = found
        self.names = ["export", *(path.stem[3:] for path in found[1:])]

    def graph(self, number: int) -> Path:
        """The file as it stands there."""
        return self.files[number]

    def check_made_from(self, config: Mapping[str, Any]) -> None:
        """Raise `InvalidModelError` unless the exported graph is one of a checkpoint with this config."""
        advice = "name by --chain the folder that `edgedm optimize --dump` wrote on the way to what is verified"
        check_same_config(self.files[0], graph_info(load_graph(self.files[0])).config, config, advice)


def check_same_config(
    path: object,
    own: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    advice: str = "verify against the checkpoint that was exported",
) -> None:
    """Raise `InvalidModelError` that names `path` and the keys in which its config is not that of the checkpoint."""
    different = sorted(key for key in own.keys() | checkpoint.keys() if own.get(key) != checkpoint.get(key))
    if different:
        raise InvalidModelError(f"{path} was not made from this checkpoint: {', '.join(different)} differ; {advice}")


def first_off(chain: Chain, holds: Holds) -> int | None:
    """The number of the first graph that does not hold; None if the last one does.

    Takes it that a fault stays: what is off after one pass is off after the next.
    """
    last = len(chain.names) - 1

    def looked(number: int) -> bool:
        progress.stage(f"bisecting: after {chain.names[number]} ({number} of {last})")
        return holds(chain.graph(number))

    if looked(last):
        return None
    if not looked(0):
        return 0
    good, bad = 0, last
    while bad - good > 1:
        middle = (good + bad) // 2
        if looked(middle):
            good = middle
        else:
            bad = middle
    return bad
