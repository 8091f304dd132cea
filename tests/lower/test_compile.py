"""A bundle's contents: reproducible, self-contained, and refused with a reason where it cannot be made."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import tools

from edgedm.bundle import load
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export.graph_io import GraphInfo, graph_info, load_graph, save_graph, set_graph_info
from edgedm.lower import compile as compile_graph
from edgedm.lower.codegen import LIBRARY_SOURCES, PROGRAM_SOURCES
from edgedm.lower.interface import load_pair, read_interface
from edgedm.passes.lookup_timestep_parameters import LookupTimestepParameters


def test_the_same_graph_gives_the_same_bytes(tiny_folder, tmp_path, monkeypatch):
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in tiny_folder.glob("deploy*"):
        shutil.copyfile(file, copy / file.name)
    monkeypatch.chdir(tmp_path)
    compile_graph("elsewhere/deploy.onnx", "again.bundle", steps=10, cache=False)
    first, second = load(tiny_folder / "model.bundle"), load("again.bundle")
    assert first.manifest == second.manifest  # it holds the hash of every other file
    assert (first.path / "manifest.json").read_bytes() == (second.path / "manifest.json").read_bytes()


def test_only_libc_and_libm_are_needed(tiny_bundle):
    tools.need("ldd")
    for name in ("bin/edgedm-sample", "lib/libedgedm.so"):
        text = subprocess.run(["ldd", tiny_bundle / name], capture_output=True, text=True, check=True).stdout
        needed = {Path(line.split()[0]).name.split(".so")[0] for line in text.splitlines()}
        assert needed <= {"linux-vdso", "libc", "libm", "ld-linux-x86-64"}


def test_every_symbol_carries_the_prefix(tiny_bundle):
    tools.need("nm")
    prefix = load(tiny_bundle).manifest.prefix
    text = subprocess.run(
        ["nm", "-D", "--defined-only", tiny_bundle / "lib/libedgedm.so"], capture_output=True, text=True, check=True
    ).stdout
    assert text
    assert all(line.split()[-1].startswith(prefix) for line in text.splitlines())


def test_the_c_sources_compile_without_a_warning_under_gcc_too(tiny_bundle, tmp_path):
    tools.need("gcc")
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror", "-DEDM_PROBE"]
    for source in (*LIBRARY_SOURCES, *PROGRAM_SOURCES):
        command = ["gcc", *flags, "-fsyntax-only", "-I", tiny_bundle / "include", tiny_bundle / "src" / source]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr


def test_the_manifest_describes_every_kernel_call(tiny_bundle):
    manifest = load(tiny_bundle).manifest
    step = [node for node in manifest.nodes if node.graph == "step"]
    assert [node.index for node in step] == list(range(len(step)))
    ours = [node for node in step if node.op != "fused"]
    assert [node.op for node in ours] == ["FloatConv", "GroupNormSiluPack", "FloatConv", "BinaryConv", "FloatConv"]
    conv = ours[3]
    assert conv.module == "tiny.conv"
    assert conv.macs == 8 * 8 * 8 * 8 * 9
    assert conv.inputs[0].name == "bits"
    assert conv.inputs[0].dtype == "uint64"
    assert [port.role for port in manifest.inputs["step"]] == ["x", "has_state", "state", "row", "row"]
    assert manifest.states()[0].shape == (1, 8, 8, 8)
    assert manifest.trained_timesteps == (tiny_model.FIRST_TIMESTEP, 999)
    assert (manifest.classes, manifest.null_class) == (2, 2)


def test_weights_are_aligned_and_stored_once(tiny_bundle):
    manifest = load(tiny_bundle).manifest
    places = {(o.offset, o.shape) for node in manifest.nodes for o in node.inputs if o.source == "weights"}
    assert all(offset % 64 == 0 for offset, _ in places)
    assert manifest.weights_bytes == (tiny_bundle / "weights.bin").stat().st_size


def test_nothing_of_the_build_shows_in_the_files(tiny_bundle):
    here = os.getcwd().encode()
    for file in tiny_bundle.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert here not in data and b"/tmp/" not in data, file


def test_a_schedule_outside_the_tables_is_refused(tiny_folder, tmp_path):
    with pytest.raises(UnsupportedError, match=r"trained for 40\.\.999"):
        compile_graph(tiny_folder / "deploy.onnx", tmp_path / "b", steps=50)
    assert not list(tmp_path.iterdir())


def test_a_lookup_that_a_pass_spelled_out_bounds_the_timesteps_too(tiny_folder):
    step, prepare, interface = load_pair(tiny_folder / "deploy.onnx")
    LookupTimestepParameters()(prepare)
    assert not any(node.op_type == "TimestepLookup" for node in prepare.graph)
    assert read_interface(step, prepare).trained == interface.trained == (tiny_model.FIRST_TIMESTEP, 999)


def test_an_unknown_sampler_or_target_is_refused(tiny_folder, tmp_path):
    with pytest.raises(UnsupportedError, match="sampler"):
        compile_graph(tiny_folder / "deploy.onnx", tmp_path / "b", sampler="euler", steps=10)
    with pytest.raises(UnsupportedError, match="target"):
        compile_graph(tiny_folder / "deploy.onnx", tmp_path / "b", target="pdp11", steps=10)


def test_files_of_two_runs_are_refused(tmp_path):
    tiny_model.write_pair(tmp_path)
    prepare = tiny_model.model(
        tiny_model.PREPARE.replace(
            '"row.0" = Add (hidden, embedded)', '"row.0" = Concat <axis = 1> (hidden, embedded)'
        ).replace('float[1,8] "row.0"', 'float[1,16] "row.0"'),
        tiny_model.constants(),
    )
    from edgedm.export.graph_io import GraphInfo, save_graph, set_graph_info

    roles = {"timestep": "timestep", "class_labels": "class_labels"}
    set_graph_info(prepare, GraphInfo("prepare", tiny_model.CONFIG, roles))
    save_graph(prepare, tmp_path / "deploy.prepare.onnx")
    with pytest.raises(InvalidModelError, match=r"row\.0"):
        compile_graph(tmp_path / "deploy.onnx", tmp_path / "b", steps=10)


def test_a_graph_that_was_not_optimised_is_sent_there(tiny_folder, tmp_path):
    model = load_graph(tiny_folder / "deploy.onnx")
    info = graph_info(model)
    set_graph_info(model, GraphInfo("exported", info.config, info.inputs))
    save_graph(model, tmp_path / "model.onnx")
    with pytest.raises(InvalidModelError, match=r"edgedm optimize model\.onnx"):
        compile_graph(tmp_path / "model.onnx", tmp_path / "out.bundle")


def test_a_missing_prepare_graph_is_named(tiny_folder, tmp_path):
    shutil.copyfile(tiny_folder / "deploy.onnx", tmp_path / "deploy.onnx")
    with pytest.raises(InvalidModelError, match=r"deploy\.prepare\.onnx"):
        compile_graph(tmp_path / "deploy.onnx", tmp_path / "b", steps=10)


def test_the_manifest_is_plain_json_with_the_hash_of_every_file(tiny_bundle):
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    names = {file.relative_to(tiny_bundle).as_posix() for file in tiny_bundle.rglob("*") if file.is_file()}
    assert set(data["files"]) == names - {"manifest.json"}
    assert data["schedule"] == {"steps": 10, "sampler": "ddim"}
    assert np.isclose(data["config"]["null_class"], tiny_model.NULL)
