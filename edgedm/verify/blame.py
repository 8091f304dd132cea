"""What introduced a failure: a pass, found by bisection; lowering; the kernel of one op; or the runtime.

Levels op and layer hold a kernel against the bundle's own graph, so what is off there is the kernel. What is off with
every kernel right came with the graph, unless the graph itself holds under ONNX Runtime: then the runtime is left.
"""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedm import progress
from edgedm.export.decoder_file import load_decoder
from edgedm.export.graph_io import graph_info, load_graph
from edgedm.passes.pipeline import Schedule
from edgedm.verify.bisect import Chain, Dumped, Rerun, first_off
from edgedm.verify.conditions import text_condition
from edgedm.verify.contents_level import contents_level
from edgedm.verify.graphs import Graph
from edgedm.verify.layer_level import LOW_BIT, READS
from edgedm.verify.pass_level import constants_row
from edgedm.verify.report import Level, Row
from edgedm.verify.run_level import Runner, Runs, step_level
from edgedm.verify.teacher import teacher_feeds
from edgedm.verify.torch_reference import Moment, TorchReference
from edgedm.verify.whole_graph import GraphRunner, WholeGraph, feeds_of

if TYPE_CHECKING:
    from edgedm.verify.graph_main import Examination as GraphExamination
    from edgedm.verify.main import Examination

Array = NDArray[Any]

_PACKED = tuple(op for op in LOW_BIT if op != "QuantMatMul")  # QuantMatMul has no weights
NOT_SEARCHED = "not looked for (--no-bisect)"

MOST_REMEMBERED = 1 << 30
"""Bytes of torch's answers that a search keeps: carried states of a big model take gigabytes in two precisions."""

ADDS_UP = (
    "the runtime (carried state, rows of a step, labels), or small errors of many steps: single steps hold where they "
    "were looked at, and it adds up over the trajectory"
)
"""Of a trajectory whose single steps hold: no pass and no kernel shows a fault that could be searched for."""


def blame_bundle(examination: "Examination", level: Level, row: Row) -> str:
    """What introduced the first row of a bundle that is off."""
    if level.name == "pass":
        return _of_pass(row)
    if level.name in ("op", "layer"):
        return _kernel(row)
    if row.name == "noise" or row.name.startswith("edm_sample"):
        return "the runtime: its sampler or its noise; the kernels that both sides ran are the same"
    if row.name == "decoder":
        return "the decoder: its graph or its kernels; levels pass, op and layer tell which"
    states = [port.name for port in examination.probe.manifest.states()]

    def compared(fresh: Path) -> str:
        return _constants(fresh, examination.graphs, lowered=True)

    search = _Search(examination, row)
    found, fresh = search.cause(states, compared)
    if found is not None:
        return found
    if not search.holds(LoweredRunner(examination.graphs, examination.reference), states):
        return f"lowering, or another graph than this pipeline makes: {fresh}"
    for again in (examination.layer, examination.op):
        off = again().first_failure
        if off is not None:
            return _kernel(off)
    return "the runtime: carried state, rows of a step, labels or the sampler; graph and kernels hold"


def blame_graph(examination: "GraphExamination", row: Row) -> str:
    """What introduced the first row of a graph file that is off."""
    graph = examination.graph
    if graph.info.level == "exported":
        return "export, or a change of the file after it"
    if row.name == "decoder":
        return "the decoder's graph: export, its simplification, or a change of the file"

    def compared(fresh: Path) -> str:
        return _constants(fresh, {"step": graph, "prepare": graph}, lowered=False)

    found, fresh = _Search(examination, row).cause(graph.states, compared, examination.runner.undecided)
    return found or f"a change after the pipeline, all of whose graphs hold: {fresh}"


def _kernel(row: Row) -> str:
    if row.note.startswith(READS):
        what = f"the constants that the kernel reads of {row.name}"
    else:  # packed weights are in no form that the graph has: what they give is all that shows them
        packed = ", or its weights as weights.bin packs them" if row.name.startswith(_PACKED) else ""
        what = f"the kernel of {row.name}{packed}"
    return f"{what}; the graph that it was compiled from is held to be right"


def _of_pass(row: Row) -> str:
    if row.name in ("weights", "nodes"):
        return "compile, or a change of the bundle: its graph is not what the pipeline makes of the checkpoint"
    return f"pass {row.name.split(' ')[0]}"


class LoweredRunner:
    """Runs the graphs that a bundle was compiled from under ONNX Runtime, one teacher-forced step at a time."""

    def __init__(self, graphs: Mapping[str, Graph], reference: TorchReference) -> None:
        self.graphs, self.reference = graphs, reference
        self._outputs = [item.name for item in graphs["step"].proto.graph.output]

    def prepare(self, steps: int = 50, sampler: str = "ddim", *, label: int | None = None) -> object:
        """Nothing to do: every step is given all that it needs."""

    def run_step(self, step: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Whole trajectories are not run here."""
        raise NotImplementedError(f"step {step}: lowered graphs run single steps")

    def step(
        self, timestep: int, x: NDArray[np.float32], label: int | None = None, state: Mapping[str, Array] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The output at a timestep from a given state, and the next state."""
        null, shape = self.reference.null_class, self.reference.condition_shape
        number = null if label is None else label
        texts = None if shape is None else text_condition(number, null, shape)[None]
        given = tuple(np.asarray(each) for each in (state or {}).values())
        moment = Moment(0, timestep, np.array([number], np.int64), x[None], given, state is not None, texts)
        values = self.graphs["step"].run(teacher_feeds(self.graphs, moment, 0)["step"])
        after = {name: np.moveaxis(values[name], -1, 1) for name in self._outputs[1:]}
        return values[self._outputs[0]][0], after


class _Remembered:
    """What torch gives at the moments of a search, for all the graphs that are looked at: once, or again if it is big.

    Nothing makes room for what comes later, for every graph asks for all of it in the same order.
    """

    def __init__(self, reference: TorchReference, most: int = MOST_REMEMBERED) -> None:
        self.null_class = reference.null_class
        self._reference, self._room = reference, most
        self._known: dict[tuple[int, int], tuple[Array, list[Array]]] = {}

    def predict(self, bits: int, moment: Moment) -> tuple[Array, list[Array]]:
        """As `TorchReference.predict`; moments are told apart by their step."""
        key = bits, moment.step
        if key in self._known:
            return self._known[key]
        output, states = self._reference.predict(bits, moment)
        size = sum(each.nbytes for each in (output, *states))
        if size <= self._room:
            self._room -= size
            self._known[key] = output, states
        return output, states


class _Search:
    """Whether a graph's single steps are within tolerance, at the moment that was off, or at all that were kept."""

    def __init__(self, examination: "Examination | GraphExamination", row: Row) -> None:
        self.examination, self.reference = examination, _Remembered(examination.reference)
        self.whole = row.name.startswith("after step")  # of a trajectory, where no single step need be off
        steps = {int(moment["step"]) for moment in row.moments if "timestep" in moment}
        runs = examination.runs
        kept = [moment for moment in runs.float32.moments if not steps or moment.step in steps]
        self.runs = Runs(runs.labels, type(runs.float32)(runs.float32.images, kept), runs.float64)
        told = re.fullmatch(r"eps, label (\d+)", row.name)
        self.image = runs.labels.index(int(told[1])) if told else 0

    def cause(
        self, states: Sequence[str], compared: Callable[[Path], str], undecided: Callable[[int], bool] | None = None
    ) -> tuple[str | None, str]:
        """What export or which pass introduced it, or why that was not looked for; None where every graph holds.

        Then what `compared` finds in the last graph.
        """
        if not self.examination.request.bisect:
            return NOT_SEARCHED, ""
        if self.whole and self.holds(self.examination.runner, states, undecided):
            return ADDS_UP, ""
        with tempfile.TemporaryDirectory(prefix="edgedm-") as folder:
            return self._through(self._chain(Path(folder)), compared)

    def holds(self, runner: Runner, states: Sequence[str], undecided: Callable[[int], bool] | None = None) -> bool:
        """Whether the steps of a runner are within tolerance."""
        most = self.examination.tables.step.ratio
        return step_level(runner, states, self.reference, self.runs, undecided, most).ok

    def _chain(self, folder: Path) -> Chain:
        asked, noise = self.examination.request, self.examination.reference.schedule
        if asked.chain is not None:
            return Dumped(asked.chain)
        schedule = Schedule(noise.timesteps(asked.steps, asked.sampler), noise.num_train_timesteps)
        return Rerun(self.examination.checkpoint, schedule, folder)

    def _through(self, chain: Chain, compared: Callable[[Path], str]) -> tuple[str | None, str]:
        number = first_off(chain, self._holds_file)
        if number is None:
            progress.stage("every graph of the pipeline holds")
            return None, compared(chain.graph(len(chain.names) - 1))
        if number == 0:
            return f"export: the exported graph is off before any pass{self._other_weights(chain)}", ""
        region = chain.region(number, self._feeds(chain.graph(0)))
        return f"pass {chain.names[number]}" + (f": {region}" if region else ""), ""

    def _holds_file(self, path: Path) -> bool:
        graph = WholeGraph(path)
        runner = GraphRunner(graph, self.reference.null_class)
        return self.holds(runner, graph.states, runner.undecided)

    def _other_weights(self, chain: Chain) -> str:
        """The first weight of the exported graph that is not the checkpoint's, in words; "" where all are."""
        reference = self.examination.reference
        trained = reference.schedule.num_train_timesteps
        off = contents_level(WholeGraph(chain.graph(0)), reference.modules[32], trained).first_failure
        other = ", or of another checkpoint" if isinstance(chain, Dumped) else ""  # a fresh one is of this checkpoint
        return f"{other}: {off.name}: {off.note}" if off else ""

    def _feeds(self, path: Path) -> dict[str, Array]:
        """The inputs of a graph file at the last moment, which carries state: of the row's label, if it has one."""
        graph, moment, image = WholeGraph(path), self.runs.float32.moments[-1], self.image
        state = {name: each[image : image + 1] for name, each in zip(graph.states, moment.state, strict=False)}
        text = None if moment.texts is None else moment.texts[image]
        given = state if moment.has_state else None
        return dict(feeds_of(graph, moment.timestep, moment.x[image], int(moment.labels[image]), given, text))


def _constants(path: Path, graphs: Mapping[str, Graph], lowered: bool) -> str:
    """Where the constants of the graphs differ from those of a fresh deployed graph at `path`."""
    prepare = path.with_suffix(".prepare.onnx")
    fresh = {"step": load_graph(path)}
    if prepare.is_file():
        fresh["prepare"] = load_graph(prepare)
    decoder = load_decoder(path, graph_info(fresh["step"]).config)
    if decoder is not None and "decoder" in graphs:
        fresh["decoder"] = decoder
    note = constants_row(fresh, graphs, lowered).note
    return note or "the constants are those of a fresh graph, so nodes or attributes differ"
