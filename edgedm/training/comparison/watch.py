"""Watch training from outside: time without evaluations, memory of a step, evaluations on the way."""

import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from edgedm.models.denoiser import Denoiser
from edgedm.training.objective import Objective

Evaluate = Callable[[Denoiser], dict[str, float]]


class Watch:
    """Context in which every `Objective` that is called is watched.

    `memory` is that of the largest stage's second iteration, in bytes: "saved" by autograd for the backward pass
    (each storage once, parameters left out), "model" the student's parameters and buffers, "trained" the gradients
    and AdamW's two moments, "cache" inputs that the objective keeps, and their sum "total". It follows from shapes
    alone; the teacher and temporaries are not in it. `start` is the student before its first iteration. At the
    iterations in `marks` and by `note`, `evaluate` is called with the student; `points` keeps what it returns,
    "iteration" and the time so far. `seconds` and `cpu_seconds`, the processor time of this process, leave
    evaluations out.
    """

    def __init__(self, marks: Collection[int] = (), evaluate: Evaluate | None = None) -> None:
        self.marks, self.evaluate = marks, evaluate
        self.memory = {"saved": 0, "model": 0, "trained": 0, "cache": 0, "total": 0}
        self.points: list[dict[str, float]] = []
        self.start: Callable[[nn.Module], None] | None = None
        self.began, self.cpu_began = time.monotonic(), time.process_time()
        self.calls: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self.saved: _Saved | None = None
        self.handles: list[Any] = []

    def __enter__(self) -> "Watch":
        self.handles = [register_module_forward_pre_hook(self._before), register_module_forward_hook(self._after)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for handle in self.handles:
            handle.remove()

    def seconds(self) -> float:
        """Return the time since the watch was made, evaluations left out."""
        return time.monotonic() - self.began

    def cpu_seconds(self) -> float:
        """Return the processor time since the watch was made, evaluations left out."""
        return time.process_time() - self.cpu_began

    def note(self, iteration: int, student: Denoiser) -> None:
        """Evaluate `student` and keep the point."""
        if self.evaluate is None:
            return
        times = {"seconds": self.seconds(), "cpu_seconds": self.cpu_seconds()}
        self.points.append({"iteration": iteration, **times, **self.evaluate(student)})
        self.began = time.monotonic() - times["seconds"]
        self.cpu_began = time.process_time() - times["cpu_seconds"]

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if not isinstance(module, Objective):
            return
        calls = self.calls[module] = self.calls.get(module, 0) + 1
        if self.start is not None:
            self.start(module.student)
            self.start = None
        if inputs[0] in self.marks:
            was_training = module.student.training
            self.note(inputs[0], module.student.eval())
            module.student.train(was_training)
        if calls == 2:
            self.saved = _Saved()
            self.saved.hooks.__enter__()

    def _after(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        if not isinstance(module, Objective) or self.saved is None:
            return
        self.saved.hooks.__exit__(None, None, None)
        parts = _memory(module, self.saved)
        self.saved = None
        if parts["total"] > self.memory["total"]:
            self.memory = parts


class _Saved:
    """Storages that autograd saves while `hooks` is entered."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        self.kept: list[Tensor] = []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        self.kept.append(tensor.detach())  # so that no other storage gets the address meanwhile
        return tensor.detach()

    def bytes_without(self, model: nn.Module) -> int:
        """Return the bytes of all storages but those of parameters and buffers of `model`."""
        own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        return sum(size for address, size in self.storages.items() if address not in own)


def _memory(objective: Objective, saved: _Saved) -> dict[str, int]:
    groups = objective.parameter_groups(1.0)
    trained = sum(p.numel() * p.element_size() for group in groups for p in group["params"])
    student = objective.student
    parts = {
        "saved": saved.bytes_without(student),
        "model": sum(t.numel() * t.element_size() for t in (*student.parameters(), *student.buffers())),
        "trained": 3 * trained,  # a gradient and two moments
        "cache": _tensor_bytes(getattr(objective, "cached", None)),
    }
    return {**parts, "total": sum(parts.values())}


def _tensor_bytes(value: Any) -> int:
    """Return the bytes of the tensors in a dataclass, dictionary or list."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_tensor_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_tensor_bytes, value))
    return _tensor_bytes(vars(value)) if hasattr(value, "__dict__") else 0
