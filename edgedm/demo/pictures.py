"""The demo's images: the same labels and the same noise in PyTorch and in the native program."""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgedm.bundle import Bundle
from edgedm.errors import ToolchainError
from edgedm.verify.torch_reference import TorchReference

STEPS = 50
GUIDANCE = 1.5
_SECONDS = 120  # for one image; it takes a fraction of one


def draw_torch(checkpoint: str, labels: Sequence[int]) -> NDArray[np.float32]:
    """One image a label f32[N, C, H, W], with PyTorch; the image of label i starts from the noise of seed i."""
    noise = [(label, 0) for label in labels]
    drawn = TorchReference(checkpoint).sample(32, labels, noise, STEPS, "ddim", guidance=GUIDANCE)
    return np.asarray(drawn.images[-1], np.float32)


def draw_native(bundle: Bundle, labels: Sequence[int]) -> NDArray[np.float32]:
    """The same images by the bundle's own program. Raises ToolchainError if it does not run here."""
    images = []
    with tempfile.TemporaryDirectory(prefix="edgedm-") as folder:
        for label in labels:
            path = Path(folder) / f"{label}.npy"
            command = [str(bundle.sampler.resolve()), "-n", "1", "--steps", str(STEPS), "--sampler", "ddim"]
            command += ["--seed", str(label), "--label", str(label), "--guidance", str(GUIDANCE), "-o", str(path)]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
            except (OSError, subprocess.SubprocessError) as error:
                said = getattr(error, "stderr", None) or str(error)
                raise ToolchainError(f"{bundle.sampler}: {said.strip()}; compile for this machine") from error
            images.append(np.load(path)[0])
    return np.stack(images)
