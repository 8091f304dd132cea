"""The small digit classifier that judges samples: its confidence, and its features for distances."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.atomic import atomic_file
from edgedm.models.checkpoint import ZOO
from edgedm.training.data import load_digits

CLASSES = 10
FEATURES = 64
FILE = ZOO / "digits-classifier" / "classifier.safetensors"


class DigitClassifier(nn.Module):
    """Three convolutions and two linear layers: f32[N, 1, 16, 16] in [-1, 1] -> logits f32[N, 10]; 63 k weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 4 * 4, FEATURES)
        self.out = nn.Linear(FEATURES, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features f32[N, 64], after their ReLU."""
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)
        return F.relu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits f32[N, 10]."""
        logits: Tensor = self.out(self.features(x))
        return logits


def train_classifier(epochs: int = 40, batch: int = 64, seed: int = 0) -> tuple[DigitClassifier, float]:
    """Train on the training split, shifted by up to one pixel; return it, rounded to float16, and its accuracy.

    The accuracy is that on the held-out fifth.
    """
    digits = load_digits()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitClassifier()
        steps = epochs * (len(digits.train_images) // batch)
        optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(digits.train_images), (batch,), generator=generator)
            shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
            images = torch.roll(digits.train_images[rows], shift, (2, 3))
            loss = F.cross_entropy(model(images), digits.train_labels[rows], label_smoothing=0.01)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return model.eval(), accuracy(model)


@torch.no_grad()
def accuracy(model: DigitClassifier) -> float:
    """Return the share of held-out digits that `model` names correctly."""
    digits = load_digits()
    return float((model(digits.held_out_images).argmax(1) == digits.held_out_labels).float().mean())


def save_classifier(model: DigitClassifier, path: Path = FILE) -> None:
    """Write the weights as float16 safetensors, whole or not at all."""
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    with atomic_file(path) as scratch:
        scratch.write_bytes(save(tensors))


def load_classifier(path: Path = FILE) -> DigitClassifier:
    """Load the classifier that ships with edgedm, in float32."""
    model = DigitClassifier()
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.eval().requires_grad_(False)
