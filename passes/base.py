"""What a pass is: an onnx_ir pass that declares whether it is exact and whether it changes the interface."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassError, PassResult

from edgedm.errors import EdgedmError
from edgedm.ops import attach_functions
from edgedm.passes.editing import Editor, Refusal

Interface = tuple[tuple[str, str, str], ...]


@dataclass
class Report(PassResult):
    """Result of one pass: the model, what was rewritten (by node), and what was recognised but refused.

    `notes` are figures; `details` name what they count: kind -> node -> numbers.
    """

    rewritten: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)
    details: dict[str, dict[str, list[int]]] = field(default_factory=dict)


def interface(model: ir.Model) -> Interface:
    """Names, dtypes and shapes of the graph's inputs and outputs."""
    ends = [*model.graph.inputs, *model.graph.outputs]
    return tuple((value.name or "", str(value.dtype), str(value.shape)) for value in ends)


class GraphPass(InPlacePass):
    """Base of the passes: subclasses implement `rewrite` with an `Editor`.

    `exact`: the outputs are bit-identical under ONNX Runtime with optimisation off; otherwise the pass reassociates
    float32 arithmetic, and each region that it changes keeps within float32's rounding bound.
    `changes_interface`: inputs or outputs get other names, types or shapes.
    """

    exact: ClassVar[bool] = True
    changes_interface: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Name for reports, dumps and messages."""
        return type(self).__name__

    def call(self, model: ir.Model) -> Report:
        """Rewrite `model` in place; an `EdgedmError` names the pass."""
        before, nodes = interface(model), list(model.graph)
        editor = Editor(model)
        try:
            notes = self.rewrite(model, editor)
        except EdgedmError as error:
            raise type(error)(f"{self.name}: {error}") from error
        editor.finish()
        attach_functions(model)
        if not self.changes_interface and interface(model) != before:
            raise PassError(f"{self.name} changed the interface from {before} to {interface(model)}")
        modified = bool(editor.rewritten) or list(model.graph) != nodes
        return Report(model, modified, editor.rewritten, editor.refusals, notes or {}, editor.details)

    @abstractmethod
    def rewrite(self, model: ir.Model, editor: Editor) -> dict[str, float] | None:
        """Change `model.graph`; return figures worth reporting, or None."""
