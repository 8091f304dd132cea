"""A second compile of an unchanged model is a copy; anything that changed, or was damaged, is compiled."""

import shutil
from pathlib import Path

import pytest

from edgedm.bundle import load
from edgedm.errors import InvalidModelError
from edgedm.lower import cache
from edgedm.lower import compile as compile_graph
from edgedm.targets import resolve

V3 = "x86-64-v3"


@pytest.fixture
def graph(tiny_folder, tmp_path, monkeypatch) -> Path:
    """The tiny model's files, and a cache of the test's own that is empty."""
    for file in tiny_folder.glob("deploy*"):
        shutil.copyfile(file, tmp_path / file.name)
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "deploy.onnx"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def key(graph: Path, target: str = V3, steps: int = 10, sampler: str = "ddim") -> str:
    return cache.key_of(graph, resolve(target), steps, sampler)


def test_a_second_compile_is_the_same_bytes_and_compiles_nothing(graph, tmp_path, monkeypatch) -> None:
    first = compile_graph(graph, tmp_path / "first", steps=10)
    monkeypatch.setattr("edgedm.lower.compiler.assemble", None)  # not called
    second = compile_graph(graph, tmp_path / "second", steps=10)
    assert (first.figures.pop("cached"), second.figures.pop("cached")) == (0, 1)
    assert files(tmp_path / "first") == files(tmp_path / "second")
    modes = [{path.stat().st_mode for path in (tmp_path / name / "bin").iterdir()} for name in ("first", "second")]
    assert modes[0] == modes[1]
    for figures in (first.figures, second.figures):
        del figures["seconds"]
    assert first.figures == second.figures


def test_without_the_cache_nothing_is_read_or_kept(graph, tmp_path, tiny_bundle) -> None:
    compile_graph(graph, tmp_path / "bundle", steps=10, cache=False)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("suffix", [".onnx", ".prepare.onnx", ".golden.safetensors"])
def test_a_file_that_changed_is_a_miss(graph, suffix) -> None:
    before, file = key(graph), graph.with_suffix(suffix)
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    changed = key(graph)
    file.unlink()
    assert len({before, changed, key(graph)}) == 3


@pytest.mark.parametrize("change", [{"target": "x86-64-v4"}, {"steps": 11}, {"sampler": "ddpm"}])
def test_another_target_or_schedule_is_a_miss(graph, change) -> None:
    assert key(graph, **change) != key(graph)


def test_other_versions_and_another_edgedm_are_a_miss(graph, monkeypatch) -> None:
    keys = {key(graph)}
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "0")
    keys.add(key(graph))
    monkeypatch.setattr(cache, "_sources_digest", lambda: b"other")
    assert len(keys | {key(graph)}) == 3


def test_every_source_file_counts(graph, tmp_path, monkeypatch) -> None:
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    (package / "inner" / "kernel.py").write_text("one")
    monkeypatch.setattr(cache.edgedm.targets, "__path__", [str(package)])
    digests = set()
    for text in ("one", "two"):
        (package / "inner" / "kernel.py").write_text(text)
        digests.add(cache._sources_digest.__wrapped__())
    assert len(digests) == 2


@pytest.mark.parametrize("damage", ["altered", "missing", "truncated manifest"])
def test_a_damaged_entry_is_not_used(graph, tmp_path, tiny_bundle, damage) -> None:
    name = key(graph)
    cache.keep(name, tiny_bundle)
    entry = tmp_path / "cache" / "bundles" / name
    if damage == "altered":
        data = bytearray((entry / "weights.bin").read_bytes())
        data[len(data) // 2] ^= 1
        (entry / "weights.bin").write_bytes(data)
    elif damage == "missing":
        (entry / "kernels.o").unlink()
    else:
        (entry / "manifest.json").write_text("{")
    assert cache.fetch(name, tmp_path / "bundle") is None
    assert not (tmp_path / "bundle").exists() and not entry.exists()
    cache.keep(name, tiny_bundle)
    assert cache.fetch(name, tmp_path / "bundle") == load(tiny_bundle).manifest


def test_the_entries_used_longest_ago_go_first(graph, tmp_path, tiny_bundle, monkeypatch) -> None:
    size = sum(path.stat().st_size for path in tiny_bundle.rglob("*") if path.is_file())
    monkeypatch.setattr(cache, "LIMIT_BYTES", 2 * size + size // 2)
    for number, name in enumerate("abc"):
        cache.keep(name, tiny_bundle)
        cache.os.utime(tmp_path / "cache" / "bundles" / name, (number, number))
    assert cache.fetch("b", tmp_path / "bundle")
    cache.keep("d", tiny_bundle)
    assert {path.name for path in (tmp_path / "cache" / "bundles").iterdir()} == {"b", "d"}


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(graph, tmp_path, tiny_bundle, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "file")
    cache.keep("a", tiny_bundle)
    assert cache.fetch("a", tmp_path / "bundle") is None


def test_a_missing_graph_is_still_named(tmp_path) -> None:
    with pytest.raises(InvalidModelError, match=r"deploy\.onnx: no such file"):
        compile_graph(tmp_path / "deploy.onnx", tmp_path / "bundle")
