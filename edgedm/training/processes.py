"""The processes of a training run, through accelerate: one on a CPU or GPU, or many on many nodes.

`accelerate launch` starts them and sets what they need to find each other; without it there is one.
"""

import hashlib
import warnings

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn


class Processes:
    """This process among all: its device and rank, and what they do together. All must make each call."""

    def __init__(self) -> None:
        # Buffers differ on purpose (every process has trajectories of its own), and some methods leave parameters
        # without a gradient in some iterations.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[ddp])

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        """This process's number among all, 0 for the main one."""
        return int(self.accelerator.process_index)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.accelerator.wait_for_everyone()

    def average_gradients(self, module: nn.Module) -> nn.Module:
        """Return `module` on the device, its gradients averaged over the processes in every backward pass."""
        with warnings.catch_warnings():
            # Only `broadcast_buffers` also leaves them alone at the start, which a resumed run needs; torch wants to
            # rename it.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            wrapped: nn.Module = self.accelerator.prepare(module)
        return wrapped

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.count == 1:
            return values
        mean: Tensor = self.accelerator.reduce(values, reduction="mean")
        return mean

    def any(self, flag: bool) -> bool:
        """Return whether `flag` holds in any process."""
        if self.count == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor([int(flag)], device=self.device), reduction="sum").item())

    def agree(self, number: int) -> bool:
        """Return whether `number` is the same everywhere."""
        return self.count == 1 or len(set(gather_object([number]))) == 1

    def gather_different(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return, for each process, those of its tensors that differ from the main process's, on the CPU."""
        if self.count == 1:
            return [{}]
        digests = {name: _digest(tensor) for name, tensor in tensors.items()}
        main = broadcast_object_list([digests])[0]
        own = {name: tensors[name].detach().cpu() for name in tensors if digests[name] != main.get(name)}
        gathered: list[dict[str, Tensor]] = gather_object([own])
        return gathered


def leave() -> None:
    """Let the other processes go at the end of a program that was launched as one of many."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).digest()
