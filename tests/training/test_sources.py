"""`--data`: what is read, how it is cut to the model, and what is refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.training.data import Batches, TensorImages, load_digits
from edgedm.training.sources import CIFAR_FILES, CIFAR_RECORD, open_images


def write(path, height=8, width=8, value=None, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    generator = np.random.default_rng(height * width)
    pixels = generator.integers(0, 256, shape) if value is None else np.full(shape, value)
    Image.fromarray(pixels.astype(np.uint8), mode).save(path)
    return pixels


def rows(*numbers):
    return torch.tensor(numbers)


def test_class_folders_become_labels_in_alphabetical_order(tmp_path):
    write(tmp_path / "dog" / "1.png", value=255)
    write(tmp_path / "cat" / "2.jpg", value=0)
    write(tmp_path / "cat" / "deeper" / "3.PNG", value=51)
    data = open_images(f"folder:{tmp_path}", (3, 8, 8))
    images, labels = data.take(rows(0, 1, 2))
    assert (len(data), data.classes) == (3, 2) and labels.tolist() == [0, 0, 1]
    assert images.shape == (3, 3, 8, 8) and images.dtype == torch.float32
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([-1.0, 51 / 127.5 - 1, 1.0]))


def test_a_flat_folder_has_no_classes(tmp_path):
    pixels = write(tmp_path / "a.png")
    data = open_images(f"folder:{tmp_path}", (3, 8, 8))
    images, labels = data.take(rows(0))
    assert data.classes == 0 and labels.tolist() == [0]
    np.testing.assert_allclose(images[0].permute(1, 2, 0), pixels / 127.5 - 1, atol=1e-6)


def test_images_are_cut_to_their_centre_then_resized(tmp_path):
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200
    (tmp_path / "x").mkdir()
    Image.fromarray(wide, "L").save(tmp_path / "x" / "a.png")
    image = open_images(f"folder:{tmp_path / 'x'}", (1, 4, 4)).take(rows(0))[0]
    torch.testing.assert_close(image, torch.full((1, 1, 4, 4), 200 / 127.5 - 1))


def test_a_colour_image_becomes_grey_for_a_model_of_one_channel(tmp_path):
    write(tmp_path / "a.png", value=100)
    assert open_images(f"folder:{tmp_path}", (1, 8, 8)).take(rows(0))[0].shape == (1, 1, 8, 8)


def test_files_are_read_when_they_are_drawn_and_a_bad_one_is_named(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    write(tmp_path / "c.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:60])
    data = open_images(f"folder:{tmp_path}", (3, 8, 8))
    data.take(rows(0))
    for row, name in ((1, "b.png"), (2, "c.png")):
        with pytest.raises(InvalidModelError, match=name):
            data.take(rows(row))


def test_folders_that_cannot_be_trained_on_are_refused(tmp_path):
    with pytest.raises(InvalidModelError, match="nowhere"):
        open_images("folder:nowhere", (3, 8, 8))
    with pytest.raises(InvalidModelError, match="no image"):
        open_images(f"folder:{tmp_path}", (3, 8, 8))
    write(tmp_path / "cat" / "1.png")
    write(tmp_path / "loose.png")
    with pytest.raises(InvalidModelError, match=r"loose\.png"):
        open_images(f"folder:{tmp_path}", (3, 8, 8))
    with pytest.raises(UnsupportedError, match="4"):
        open_images(f"folder:{tmp_path}", (4, 8, 8))


def test_a_changed_folder_is_another_data_set_a_moved_one_is_not(tmp_path):
    write(tmp_path / "one" / "a.png")
    write(tmp_path / "two" / "a.png")
    one, two = (open_images(f"folder:{tmp_path / name}", (3, 8, 8)).identity for name in ("one", "two"))
    write(tmp_path / "two" / "b.png")
    assert one == two != open_images(f"folder:{tmp_path / 'two'}", (3, 8, 8)).identity


@pytest.fixture
def cifar(tmp_path):
    """Five files of three records; the label and the pixels of record r in file f are f and 16 r."""
    for index, name in enumerate(CIFAR_FILES):
        records = np.zeros((3, CIFAR_RECORD), np.uint8)
        records[:, 0] = index
        records[:, 1:] = (16 * np.arange(3))[:, None]
        records[:, 1 : 1 + 1024] = 255  # the red plane comes first
        (tmp_path / name).write_bytes(records.tobytes())
    return tmp_path


def test_cifar10_is_read_record_by_record_planes_in_order(cifar):
    data = open_images(f"cifar10:{cifar}", (3, 32, 32))
    images, labels = data.take(rows(14, 0, 4))
    assert (len(data), data.classes) == (15, 10) and labels.tolist() == [4, 0, 1]
    assert images.shape == (3, 3, 32, 32) and (images[:, 0] == 1).all()
    torch.testing.assert_close(images[:, 1, 5, 7], torch.tensor([32, 0, 16]) / 127.5 - 1)
    one = open_images(f"cifar10:{cifar / CIFAR_FILES[4]}", (3, 32, 32))
    assert len(one) == 3 and torch.equal(one.take(rows(2))[0][0], images[0])


def test_cifar10_is_resized_and_made_grey_for_smaller_models(cifar):
    images, _ = open_images(f"cifar10:{cifar}", (1, 8, 8)).take(rows(0))
    torch.testing.assert_close(images, torch.full((1, 1, 8, 8), 0.299 - 0.587 - 0.114))


def test_cifar10_files_that_are_missing_cut_or_mislabelled_are_named(cifar):
    last = cifar / CIFAR_FILES[-1]
    content = last.read_bytes()
    for broken, complaint in ((content[:-1], "9218 bytes"), (b"", "0 bytes"), (b"\x0a" + content[1:], "got 10")):
        last.write_bytes(broken)
        with pytest.raises(InvalidModelError, match=rf"data_batch_5\.bin.*{complaint}"):
            open_images(f"cifar10:{cifar}", (3, 32, 32))
    last.unlink()
    with pytest.raises(InvalidModelError, match=r"data_batch_5\.bin"):
        open_images(f"cifar10:{cifar}", (3, 32, 32))


@pytest.mark.parametrize("text", ["imagenet", "folder:", "cifar10", "none", ""])
def test_other_names_are_refused_with_the_list(text):
    with pytest.raises(UnsupportedError, match=r"digits.*folder:PATH.*cifar10:PATH"):
        open_images(text, (3, 8, 8))


def test_the_digits_have_one_channel():
    assert open_images("digits", (1, 8, 8)).take(rows(0, 1))[0].shape == (2, 1, 8, 8)
    with pytest.raises(UnsupportedError, match="folder:PATH"):
        open_images("digits", (3, 8, 8))


def drawn(data, null_class, dropout):
    return Batches(data, NoiseSchedule(), 64, null_class, dropout).draw(torch.Generator().manual_seed(0))


def test_a_batch_depends_on_its_generator_alone_and_noises_as_the_schedule_says():
    batch, again = (drawn(load_digits(8).training(), 10, 0.5) for _ in range(2))
    assert torch.equal(batch.noisy, again.noisy) and torch.equal(batch.labels, again.labels)
    a = NoiseSchedule().alphas_cumprod()[batch.timesteps.numpy()][:, None, None, None]
    expected = np.sqrt(a) * batch.images.numpy() + np.sqrt(1 - a) * batch.noise.numpy()
    np.testing.assert_allclose(batch.noisy, expected, atol=1e-6)
    assert (batch.labels == 10).float().mean().item() == pytest.approx(0.5, abs=0.2)


def test_without_classes_every_label_is_the_null_class():
    plain = TensorImages(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), 0, "plain")
    assert (drawn(plain, 10, 0.1).labels == 10).all()
    assert (drawn(load_digits(8).training(), None, 0.1).labels == 0).all()
