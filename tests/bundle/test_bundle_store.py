"""A bundle is used only if every byte is the one that was compiled."""

import json
import shutil

import pytest

from edgedm.bundle import load, write
from edgedm.errors import EdgedmError, InvalidModelError


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "b")


def _edit(bundle, change) -> None:
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_an_intact_bundle_loads(copy):
    assert load(copy).library.is_file()


@pytest.mark.parametrize(
    "name", ["weights.bin", "lib/libedgedm.so", "bin/edgedm-sample", "src/model.c", "golden/step.onnx"]
)
def test_one_flipped_bit_is_found(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(InvalidModelError, match=name.rpartition("/")[2]):
        load(copy)


def test_a_missing_and_an_additional_file_are_named(copy):
    (copy / "weights.bin").rename(copy / "weights.old")
    with pytest.raises(InvalidModelError, match=r"missing \['weights\.bin'\], unknown \['weights\.old'\]"):
        load(copy)


def test_an_additional_folder_is_named_though_it_is_empty(copy):
    (copy / "lib" / "more").mkdir()
    with pytest.raises(InvalidModelError, match=r"missing \[\], unknown \['lib/more/'\]"):
        load(copy)


def test_a_symlink_is_no_file_of_a_bundle(copy, tmp_path):
    (copy / "weights.bin").rename(tmp_path / "weights.bin")
    (copy / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(InvalidModelError, match=r"weights\.bin"):
        load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format="edgedm.bundle/2"), "format"),
        (lambda data: data.update(surprise=1), "surprise"),
        (lambda data: data.pop("nodes"), "nodes"),
        (lambda data: data["files"].update({"../../etc/passwd": data["files"]["weights.bin"]}), "inside"),
        (lambda data: data["files"].update({"/etc/passwd": data["files"]["weights.bin"]}), "inside"),
        (lambda data: data["files"]["weights.bin"].update(sha256="0"), "sha256"),
        (lambda data: data["nodes"][0].update(macs=-1), "macs"),
        (lambda data: data.update(prefix="x; rm -rf"), "prefix"),
        (lambda data: data.update(image_shape=[1, 2]), "image_shape"),
    ],
)
def test_a_broken_manifest_is_refused(copy, change, message):
    _edit(copy, change)
    with pytest.raises(InvalidModelError, match=message):
        load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 3}', "[" * 100_000, "\x00", "\ufeff{}"])
def test_what_is_no_manifest_is_refused(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(InvalidModelError, match=r"manifest\.json"):
        load(copy)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(InvalidModelError, match="expected a bundle"):
        load(tmp_path)


def test_a_failed_write_leaves_the_old_bundle(copy):
    def fail(folder):
        (folder / "half").write_text("half")
        raise EdgedmError("stop")

    before = load(copy).manifest
    with pytest.raises(EdgedmError, match="stop"):
        write(copy, fail)
    assert load(copy).manifest == before
    assert [path.name for path in copy.parent.iterdir()] == ["b"]


def _stop(folder):
    raise EdgedmError("stop")


@pytest.mark.parametrize("manifest", ['{"name": "app", "start_url": "/"}', '{"format": 1}', "[]", "", "\x00"])
def test_a_folder_with_another_manifest_is_never_replaced(tmp_path, manifest):
    """A web app has a manifest.json too."""
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_text(manifest)
    (app / "index.html").write_text("mine")
    with pytest.raises(InvalidModelError, match=r"app: holds other files \(it has no manifest\.json of a bundle\)"):
        write(app, _stop)
    assert (app / "index.html").read_text() == "mine"


def test_a_bundle_is_replaced_whatever_its_version_and_state_but_not_what_was_put_into_it(copy):
    (copy / "images").mkdir()
    (copy / "images" / "grid.png").write_text("mine")
    with pytest.raises(InvalidModelError, match=r"b: holds other files \(it has images/grid\.png beside a bundle\)"):
        write(copy, _stop)
    (copy / "images" / "grid.png").unlink()
    (copy / "weights.bin").unlink()
    _edit(copy, lambda data: data.update(format="edgedm.bundle/0"))
    with pytest.raises(EdgedmError, match="stop"):
        write(copy, _stop)
