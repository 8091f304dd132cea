"""`--data`: the digits, a folder of images, CIFAR-10 as published, or nothing."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.files import check_regular
from edgedm.training.data import Images, load_digits

NONE = "none"
SUFFIXES = {".png", ".jpg", ".jpeg"}
CACHE_BYTES = 1 << 30  # decoded and resized images that are kept

CIFAR_FILES = tuple(f"data_batch_{index}.bin" for index in range(1, 6))
CIFAR_TEST_FILE = "test_batch.bin"
CIFAR_SIZE, CIFAR_CLASSES = 32, 10
CIFAR_RECORD = 1 + 3 * CIFAR_SIZE * CIFAR_SIZE  # the label, then red, green and blue planes

_MODES = {1: "L", 3: "RGB"}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts


def open_images(text: str, shape: tuple[int, int, int]) -> Images:
    """Open "digits", "folder:PATH" or "cifar10:PATH" as images of `shape` (C, H, W).

    Raises `UnsupportedError` for any other text or a shape that the data cannot take, `InvalidModelError` for
    files that are missing or broken.
    """
    kind, _, rest = text.partition(":")
    if kind == "folder" and rest:
        return FolderImages(Path(rest), shape)
    if kind == "cifar10" and rest:
        return Cifar10(Path(rest), shape)
    if text == "digits":
        if shape[0] != 1:
            raise UnsupportedError(f"data: the digits have 1 channel, the model {shape[0]}; give --data folder:PATH")
        return load_digits(shape[1]).training()
    raise UnsupportedError(f"data: expected 'digits', 'folder:PATH', 'cifar10:PATH' or 'none', got {text!r}")


class FolderImages:
    """PNG and JPEG files below a folder, read when they are drawn.

    With class folders (`PATH/cat/1.png`) their names in alphabetical order are the labels 0, 1, ...; files that lie
    in the folder itself have no label, and both together are refused. Each image is cut to its central part of the
    model's aspect and resized (bicubic, antialiased). Raises `InvalidModelError` that names a file that cannot be
    read, when it is drawn.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        if shape[0] not in _MODES:
            raise UnsupportedError(f"data: images have 1 or 3 channels, the model {shape[0]}")
        if not folder.is_dir():
            raise InvalidModelError(f"{folder}: no such folder of images")
        self.shape, self.mode = shape, _MODES[shape[0]]
        self.files = _image_files(folder)
        loose = [path for path in self.files if path.parent == folder]
        if not self.files:
            raise InvalidModelError(f"{folder}: no image in it or below it; expected {', '.join(sorted(SUFFIXES))}")
        if loose and len(loose) < len(self.files):
            raise InvalidModelError(
                f"{loose[0]}: lies beside class folders; move it into one, or all images into {folder} itself"
            )
        names = [] if loose else sorted({path.relative_to(folder).parts[0] for path in self.files})
        self.class_names = names
        number = {name: index for index, name in enumerate(names)}
        self.labels = torch.tensor([0 if loose else number[path.relative_to(folder).parts[0]] for path in self.files])
        self.identity = _listing_identity(folder, self.files)
        self.kept: dict[int, Tensor] = {}
        self.room = CACHE_BYTES // (shape[0] * shape[1] * shape[2])

    @property
    def classes(self) -> int:
        """Number of class folders."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.files)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels of `rows`."""
        pixels = torch.stack([self._pixels(row) for row in rows.tolist()])
        return pixels.float() / 127.5 - 1, self.labels[rows]

    def _pixels(self, row: int) -> Tensor:
        """Return uint8[C, H, W] of one file."""
        pixels = self.kept.get(row)
        if pixels is None:
            pixels = torch.from_numpy(_read_image(self.files[row], self.mode, self.shape))
            if len(self.kept) < self.room:
                self.kept[row] = pixels
        return pixels


class Cifar10:
    """CIFAR-10's binary version: records of 3073 bytes in data_batch_1.bin to data_batch_5.bin.

    PATH is the folder of the five files, or one file of that layout (test_batch.bin). Images are resized
    (bilinear, antialiased) where the model is not 32x32, and become grey where it has one channel.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        if shape[0] not in _MODES:
            raise UnsupportedError(f"data: CIFAR-10 has 3 channels, or 1 as grey; the model {shape[0]}")
        files = [path / name for name in CIFAR_FILES] if path.is_dir() else [path]
        self.shape, self.classes = shape, CIFAR_CLASSES
        self.records = [_records(file) for file in files]
        self.starts = torch.tensor([0, *np.cumsum([len(part) for part in self.records])])
        self.identity = _listing_identity(path if path.is_dir() else path.parent, files)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels of `rows`."""
        files = torch.bucketize(rows, self.starts, right=True) - 1
        pairs = zip(files.tolist(), (rows - self.starts[files]).tolist(), strict=True)
        chosen = torch.from_numpy(np.stack([self.records[file][row] for file, row in pairs]))
        images = chosen[:, 1:].reshape(-1, 3, CIFAR_SIZE, CIFAR_SIZE).float() / 127.5 - 1
        channels, height, width = self.shape
        if (height, width) != (CIFAR_SIZE, CIFAR_SIZE):
            images = F.interpolate(images, (height, width), mode="bilinear", antialias=True, align_corners=False)
        if channels == 1:
            images = (images * torch.tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
        return images, chosen[:, 0].long()


def _image_files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _listing_identity(folder: Path, files: Sequence[Path]) -> str:
    """Return a count and a hash of names and sizes: cheap for a million files, and the same wherever they lie."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n".encode())
    return f"{len(files)} files {digest.hexdigest()[:16]}"


def _read_image(path: Path, mode: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    channels, height, width = shape
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            scale = min(image.width / width, image.height / height)
            cut_width, cut_height = max(1, round(scale * width)), max(1, round(scale * height))
            left, top = (image.width - cut_width) // 2, (image.height - cut_height) // 2
            # cut first: a resize of a part of the image would look beyond its edges
            central = image.convert(mode).crop((left, top, left + cut_width, top + cut_height))
            fitted = central.resize((width, height), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidModelError(f"{path}: not a PNG or JPEG image that can be read: {error}") from error
    pixels = np.array(fitted, dtype=np.uint8).reshape(height, width, channels)
    return pixels.transpose(2, 0, 1).copy()


def _records(path: Path) -> NDArray[np.uint8]:
    """Return a map of a file's records, uint8[N, 3073]."""
    if not path.is_file():
        raise InvalidModelError(
            f"{path}: no such file; expected CIFAR-10's binary version: {', '.join(CIFAR_FILES)} in one folder, or "
            f"one file such as {CIFAR_TEST_FILE}"
        )
    size = check_regular(path)
    if size == 0 or size % CIFAR_RECORD:
        raise InvalidModelError(f"{path}: expected records of {CIFAR_RECORD} bytes, got {size} bytes in all")
    records: NDArray[np.uint8] = np.memmap(path, np.uint8, "r").reshape(-1, CIFAR_RECORD)
    highest = int(records[:, 0].max())
    if highest >= CIFAR_CLASSES:
        raise InvalidModelError(f"{path}: expected labels 0..{CIFAR_CLASSES - 1}, got {highest}")
    return records
