"""A second compile of an unchanged model is a copy; anything that changed, or was damaged, is compiled."""

import errno
import os
import resource
import shutil
import time
from pathlib import Path

import pytest

from edgedm.bundle import load
from edgedm.errors import InvalidModelError
from edgedm.lower import cache, compiler
from edgedm.lower import compile as compile_graph
from edgedm.lower.toolchain import cache_folder
from edgedm.targets import resolve

V3 = "x86-64-v3"


@pytest.fixture
def graph(tiny_folder, tmp_path, monkeypatch) -> Path:
    """The tiny model's files, and a cache of the test's own that is empty."""
    for file in tiny_folder.glob("deploy*"):
        shutil.copyfile(file, tmp_path / file.name)
    monkeypatch.setenv("EDGEDM_BUNDLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "deploy.onnx"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def key(graph: Path, target: str = V3, steps: int = 10, sampler: str = "ddim") -> str:
    return cache.key_of(graph, [resolve(target)], steps, sampler)


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


def test_of_the_ndk_what_it_is_counts_and_for_android_only(graph, monkeypatch) -> None:
    """Neither a link to the newest NDK hides that it changed, nor does another place of the same one matter."""
    keys: dict[str, list[str]] = {V3: [], "android-arm64": []}
    for name, path in (("ndk 27", "/ndk"), ("ndk 28", "/ndk"), ("ndk 28", "/elsewhere")):
        monkeypatch.setenv("ANDROID_NDK_HOME", path)
        monkeypatch.setattr("edgedm.android.linker.toolchain_name", lambda name=name: name)
        for target, found in keys.items():
            found.append(key(graph, target))
    assert len(set(keys[V3])) == 1
    older, newer, moved = keys["android-arm64"]
    assert older != newer == moved


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
    entry = tmp_path / "cache" / name
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


def test_an_output_that_cannot_be_written_is_said_before_anything_is_compiled(graph, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiler, "_lower", None)  # not called
    with pytest.raises(InvalidModelError, match="is a file"):
        compile_graph(graph, tmp_path / "file" / "bundle", steps=10)


def test_an_output_that_cannot_be_written_is_no_fault_of_the_entry(graph, tmp_path, tiny_bundle) -> None:
    (tmp_path / "file").write_text("")
    cache.keep("a", tiny_bundle)
    with pytest.raises(InvalidModelError, match="is a file"):
        cache.fetch("a", tmp_path / "file" / "bundle")
    assert files(tmp_path / "cache" / "a") == files(tiny_bundle)


def test_a_disk_that_fills_up_is_no_fault_of_the_entry(graph, tmp_path, tiny_bundle) -> None:
    cache.keep("a", tiny_bundle)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(map(len, files(tiny_bundle).values())) - 1, hard))
    try:
        with pytest.raises(OSError) as refusal:
            cache.fetch("a", tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refusal.value.errno == errno.EFBIG  # what the command line makes its message of
    assert not (tmp_path / "bundle").exists()
    assert files(tmp_path / "cache" / "a") == files(tiny_bundle)


@pytest.mark.parametrize("when", ["before it is read", "while it is copied"])
def test_an_entry_that_another_process_removes_meanwhile_is_no_error(
    graph, tmp_path, tiny_bundle, monkeypatch, when
) -> None:
    function = {"before it is read": "load_unsigned", "while it is copied": "write"}[when]
    honest = getattr(cache, function)

    def evict(*arguments):
        shutil.rmtree(tmp_path / "cache" / "a")
        return honest(*arguments)

    monkeypatch.setattr(cache, function, evict)
    cache.keep("a", tiny_bundle)
    manifest = cache.fetch("a", tmp_path / "bundle")
    if when == "while it is copied":
        assert manifest == load(tmp_path / "bundle").manifest == load(tiny_bundle).manifest
    else:
        assert manifest is None and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("suffix", [".prepare.onnx", ".golden.safetensors"])
def test_a_bundle_of_files_that_changed_while_it_was_compiled_is_not_kept(graph, tmp_path, monkeypatch, suffix) -> None:
    before, file, honest = key(graph), graph.with_suffix(suffix), compiler.load_pair

    def export_again(path):
        pair = honest(path)
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        return pair

    monkeypatch.setattr(compiler, "load_pair", export_again)
    compile_graph(graph, tmp_path / "bundle", target=V3, steps=10)
    assert load(tmp_path / "bundle") and key(graph) != before
    assert not (tmp_path / "cache").exists()


def test_the_entries_used_longest_ago_go_first(graph, tmp_path, tiny_bundle, monkeypatch) -> None:
    size = sum(path.stat().st_size for path in tiny_bundle.rglob("*") if path.is_file())
    monkeypatch.setattr(cache, "LIMIT_BYTES", 2 * size + size // 2)
    for number, name in enumerate("abc"):
        cache.keep(name, tiny_bundle)
        os.utime(tmp_path / "cache" / name, (number, number))
    assert cache.fetch("b", tmp_path / "bundle")
    cache.keep("d", tiny_bundle)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"b", "d"}


def test_what_another_process_is_still_writing_is_left_alone(graph, tmp_path, tiny_bundle, monkeypatch) -> None:
    monkeypatch.setattr(cache, "LIMIT_BYTES", 0)
    for name, hours in (("fresh", 23), ("left", 25)):
        scratch = tmp_path / "cache" / f".{name}.scratch"
        scratch.mkdir(parents=True)
        (scratch / "weights.bin").write_bytes(b"w")
        os.utime(scratch, (0, time.time() - hours * 3600))
    cache.keep("a", tiny_bundle)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {".fresh.scratch", "a"}


def test_tests_keep_out_of_the_users_cache() -> None:
    assert cache._folder() != cache_folder() / "bundles"
    assert cache_folder() not in cache._folder().parents


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(graph, tmp_path, tiny_bundle, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEDM_BUNDLE_CACHE", str(tmp_path / "file"))
    cache.keep("a", tiny_bundle)
    assert cache.fetch("a", tmp_path / "bundle") is None


def test_a_missing_graph_is_still_named(tmp_path) -> None:
    with pytest.raises(InvalidModelError, match=r"deploy\.onnx: no such file"):
        compile_graph(tmp_path / "deploy.onnx", tmp_path / "bundle")
