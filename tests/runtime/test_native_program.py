"""`bin/edgedm-sample`: the same images as Python, and clear refusals."""

import hashlib
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgedm.bundle import load
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.images import encode_png, grid
from edgedm.lower import compile as compile_graph
from edgedm.runtime import LocalRunner, sample_bundle


def _run(bundle, *options, **keywords):
    command = [bundle / "bin/edgedm-sample", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **keywords)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label": 1, "guidance": 1.5, "seed": 2**64 - 1},
        {"sampler": "ddpm", "steps": 15, "threads": 2},
        {"eta": 0.25, "n": 3, "label": 0},
        {"sampler": "dpm-solver++", "steps": 7, "label": 1, "threads": 3},
    ],
)
def test_the_same_bytes_as_python(tiny_bundle, tmp_path, options):
    chosen = {"n": 5, "steps": 10, **options}
    sample_bundle(tiny_bundle, tmp_path / "python.npy", **chosen)
    flags = [text for name, value in chosen.items() for text in ("-n" if name == "n" else f"--{name}", value)]
    done = _run(tiny_bundle, *flags, "-o", tmp_path / "native.npy")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "native.npy").read_bytes() == (tmp_path / "python.npy").read_bytes()


def test_both_draw_by_the_schedule_that_the_bundle_was_compiled_for(tiny_folder, tmp_path):
    bundle = tmp_path / "short.bundle"
    compile_graph(tiny_folder / "deploy.onnx", bundle, steps=7, sampler="dpm-solver++")
    sample_bundle(bundle, tmp_path / "asked.npy", n=2, steps=7, sampler="dpm-solver++")
    sample_bundle(bundle, tmp_path / "python.npy", n=2)
    assert _run(bundle, "-n", 2, "-o", tmp_path / "native.npy").returncode == 0
    assert len({(tmp_path / f"{name}.npy").read_bytes() for name in ("asked", "python", "native")}) == 1
    sample_bundle(bundle, tmp_path / "other.npy", n=2, steps=8)
    assert (tmp_path / "other.npy").read_bytes() != (tmp_path / "asked.npy").read_bytes()


def test_the_png_has_pythons_pixels(tiny_bundle, tmp_path):
    for name in ("a.npy", "a.png"):
        assert _run(tiny_bundle, "-n", 5, "-o", tmp_path / name).returncode == 0
    images = np.load(tmp_path / "a.npy")
    assert _decode((tmp_path / "a.png").read_bytes()) == _decode(encode_png(grid(images)))


def _decode(data: bytes) -> tuple[bytes, bytes]:
    """Header and raw scanlines of a PNG; every checksum is verified."""
    import zlib

    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, header, body = 8, b"", b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunk = data[at + 4 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(chunk)
        header = chunk[4:] if chunk[:4] == b"IHDR" else header
        body += chunk[4:] if chunk[:4] == b"IDAT" else b""
        at += 12 + length
    return header, zlib.decompress(body)


def test_defaults_are_those_of_the_bundle(tiny_bundle, tmp_path):
    assert _run(tiny_bundle, "-n", 1, "-o", tmp_path / "default.npy").returncode == 0
    with LocalRunner(tiny_bundle) as runner:
        runner.prepare(10, "ddim")
        assert np.array_equal(np.load(tmp_path / "default.npy"), runner.sample(1))


def test_a_moved_bundle_still_works(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "moved")
    assert _run(tmp_path / "moved", "-n", 1, "-o", "x.npy", cwd=tmp_path).returncode == 0
    done = _run(tiny_bundle, "-n", 1, "-o", "y.npy", "--bundle", "moved", cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "y.npy").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps"),
        (["--steps", "1e3"], "--steps"),
        (["--steps", "50"], "trained 40..999"),
        (["--label", "2"], "label"),
        (["--sampler", "euler"], "ddim, ddpm or dpm-solver++"),
        (["--start", "nowhere.npy"], "nowhere.npy"),
        (["--cores", "1;2"], "--cores"),
        (["--cores", "1023"], "cores"),
        (["--strength", "x"], "--strength"),
        (["--eta", "nan"], "--eta"),
        (["--eta", "2"], "eta"),
        (["--seed", "-1"], "--seed"),
        (["--seed", " -1"], "--seed"),
        (["--sampler", "ddpm", "--eta", "0.5"], "eta: expected 0"),
        (["-n", "0"], "edgedm-sample: -n: expected"),
        (["--guidance", "inf", "--label", "1"], "guidance: expected a finite number, got inf"),
        (["--guidance", "-inf"], "guidance: expected a finite number, got -inf"),
        (["--guidance", "nan"], "--guidance: expected a number"),
        (["--guidance", "1e39"], "guidance: expected a finite number"),  # beyond float32
        (["--strength", "0.5"], "--strength: there is no --start"),
        (["-o", "images.gif", "-n", "1000000"], ".png or .npy"),  # at once, not after drawing them
        (["--cores", ",".join(["0"] * 1025)], "at most 1024"),
        (["--cores", "0,"], "--cores"),
        (["-o", "no/such/folder/a.npy"], "there is no such folder"),
        (["-o", "no/such/folder/a.npy", "-n", "1000000"], "there is no such folder"),  # at once
        (["--bundle", "nowhere"], "nowhere/weights.bin"),
        (["--what"], ""),
        (["surprise"], "surprise"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(tiny_bundle, tmp_path, options, message):
    done = _run(tiny_bundle, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_python_refuses_an_output_before_it_draws(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("edgedm.runtime.sample._draw", lambda *_: pytest.fail("drawn"))
    with pytest.raises(UnsupportedError, match=r"\.png or \.npy"):
        sample_bundle(tiny_bundle, tmp_path / "images.gif", steps=5)


def test_altered_weights_are_refused(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "b")
    data = bytearray((tmp_path / "b/weights.bin").read_bytes())
    data[-1] ^= 128
    (tmp_path / "b/weights.bin").write_bytes(data)
    done = _run(tmp_path / "b", cwd=tmp_path)
    assert done.returncode == 2
    assert "SHA-256" in done.stderr
    assert not (tmp_path / "images.png").exists()


def test_the_self_test_passes_and_bites(tiny_bundle, tmp_path):
    done = _run(tiny_bundle, "--self-test")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("timestep") == 3
    shutil.copytree(tiny_bundle, tmp_path / "b")
    golden = tmp_path / "b/golden/golden.bin"
    data = bytearray(golden.read_bytes())
    data[-64 * 4 :] = np.random.default_rng(0).standard_normal(64).astype("<f4").tobytes()
    _expect(tmp_path / "b", golden, data)
    done = _run(tmp_path / "b", "--self-test")
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    _expect(tmp_path / "b", golden, data[:-1])
    done = _run(tmp_path / "b", "--self-test")
    assert done.returncode == 2
    assert "golden.bin: truncated" in done.stderr
    golden.unlink()
    assert _run(tmp_path / "b", "--self-test").returncode == 2


def _expect(bundle: Path, golden: Path, data: bytes) -> None:
    """Write other golden data, and have the program take them for those that it was compiled with."""
    program = (bundle / "bin/edgedm-sample").read_bytes()
    known, new = (struct.pack("<Q", len(each)) + hashlib.sha256(each).digest() for each in (golden.read_bytes(), data))
    assert program.count(known) == 1
    (bundle / "bin/edgedm-sample").write_bytes(program.replace(known, new))
    golden.write_bytes(data)


@pytest.mark.parametrize("name", ["golden.bin", "layers.bin"])
def test_a_self_test_refuses_golden_data_that_were_altered(tiny_bundle, tmp_path, name):
    shutil.copytree(tiny_bundle, tmp_path / "b")
    path = tmp_path / "b/golden" / name
    whole = path.read_bytes()
    for data in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], whole + bytes(64), b""):
        path.write_bytes(data)
        done = _run(tmp_path / "b", "--self-test")
        why = " (SHA-256 differs)" if len(data) == len(whole) else f": expected {len(whole)} bytes, found {len(data)}"
        assert done.returncode == 2
        assert f"{name}: not the golden data that this model was compiled with{why}\n" in done.stderr
        assert not done.stdout
    for other in (path.mkdir, lambda: path.symlink_to("/dev/zero"), lambda: os.mkfifo(path)):
        path.rmdir() if path.is_dir() else path.unlink()
        other()
        done = _run(tmp_path / "b", "--self-test", timeout=20)
        assert done.returncode == 2
        assert f"{name}: is no file" in done.stderr


@pytest.mark.parametrize("name", ["weights.bin", "start.npy"])
def test_a_pipe_is_not_waited_for(tiny_bundle, tmp_path, name):
    shutil.copytree(tiny_bundle, tmp_path / "b")
    (tmp_path / "b/weights.bin").rename(tmp_path / "weights.bin") if name == "weights.bin" else None
    os.mkfifo(tmp_path / "b" / name)
    options = [] if name == "weights.bin" else ["--start", tmp_path / "b" / name]
    done = _run(tmp_path / "b", *options, timeout=20, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{name}: is no file" in done.stderr


def test_a_model_without_golden_data_takes_none(tiny_folder, tiny_bundle, tmp_path):
    for name in ("deploy.onnx", "deploy.prepare.onnx"):
        shutil.copyfile(tiny_folder / name, tmp_path / name)
    compile_graph(tmp_path / "deploy.onnx", tmp_path / "b", steps=10)
    done = _run(tmp_path / "b", "--self-test")
    assert done.returncode == 2
    assert "golden.bin: No such file" in done.stderr
    shutil.copytree(tiny_bundle / "golden", tmp_path / "b/golden", dirs_exist_ok=True)
    done = _run(tmp_path / "b", "--self-test")
    assert done.returncode == 2
    assert "golden.bin: this model was compiled without such golden data" in done.stderr


def test_it_starts_from_images_as_python_does(tiny_bundle, tmp_path):
    start = np.random.default_rng(0).uniform(-1, 1, (3, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "start.npy", start)
    options = ("-n", 3, "--steps", 10, "--start", tmp_path / "start.npy", "--strength", 0.6, "--label", 1)
    done = _run(tiny_bundle, *options, "--cores", "big", "--threads", 2, "-o", tmp_path / "a.npy")
    assert done.returncode == 0, done.stderr
    chosen = {"n": 3, "steps": 10, "start": tmp_path / "start.npy", "strength": 0.6, "label": 1}
    sample_bundle(tiny_bundle, tmp_path / "b.npy", **chosen)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    with pytest.raises(InvalidModelError, match=r"start.npy: expected float32\[2, 1, 8, 8\]"):
        sample_bundle(tiny_bundle, tmp_path / "b.npy", **{**chosen, "n": 2})
    done = _run(tiny_bundle, "-n", 2, "--steps", 10, "--start", tmp_path / "start.npy", "-o", tmp_path / "b.npy")
    assert done.returncode == 2
    assert "start.npy" in done.stderr


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_start_images_that_are_not_finite_are_refused(tiny_bundle, tmp_path, value):
    start = np.zeros((2, 1, 8, 8), np.float32)
    start[1, 0, 0, 3] = value
    np.save(tmp_path / "start.npy", start)
    done = _run(tiny_bundle, "-n", 2, "--start", "start.npy", "-o", "a.npy", cwd=tmp_path)
    assert done.returncode == 2
    assert "start: value 3 of image 1 is not finite" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["start.npy"]


@pytest.mark.parametrize("name", ["a.npy", "a.png"])
def test_what_is_no_regular_file_is_not_replaced(tiny_bundle, tmp_path, name):
    os.mkfifo(tmp_path / name)
    done = _run(tiny_bundle, "-n", 1, "-o", name, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{name}: exists and is no regular file" in done.stderr
    assert (tmp_path / name).is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_and_a_link_to_one_are_replaced(tiny_bundle, tmp_path):
    (tmp_path / "old.npy").write_bytes(b"old")
    (tmp_path / "link.npy").symlink_to("old.npy")
    for name in ("link.npy", "old.npy"):
        assert _run(tiny_bundle, "-n", 1, "-o", name, cwd=tmp_path).returncode == 0
        assert np.load(tmp_path / name).shape == (1, 1, 8, 8)


def test_times_and_peak_memory_are_printed(tiny_bundle, tmp_path):
    for options in (("--times", "-n", 2, "-o", tmp_path / "a.npy"), ("--self-test",)):
        done = _run(tiny_bundle, *options)
        lines = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
        assert float(lines["start-up"][1]) > 0
        assert float(lines["step"][1]) > 0
        assert int(lines["peak"][2]) > 500


def test_the_steps_that_a_start_leaves_out_are_not_timed(tiny_bundle, tmp_path):
    np.save(tmp_path / "start.npy", np.zeros((2, 1, 8, 8), np.float32))
    options = ("-n", 2, "--steps", 10, "--start", tmp_path / "start.npy", "--strength", 0.6)
    done = _run(tiny_bundle, "--times", *options, "-o", tmp_path / "a.npy")
    assert "(12 steps)" in done.stdout


def test_no_core_of_a_long_list_is_forgotten(tiny_bundle, tmp_path):
    cores = ",".join([*["1023"] * 300, str(min(os.sched_getaffinity(0)))])  # no machine here has the former
    done = _run(tiny_bundle, "-n", 1, "--cores", cores, "-o", tmp_path / "a.npy")
    assert done.returncode == 0, done.stderr


def test_the_self_test_names_the_first_layer_that_is_off(tiny_bundle, tmp_path):
    done = _run(tiny_bundle, "--self-test")
    calls = [node for node in load(tiny_bundle).manifest.nodes if node.graph == "step" and node.node]
    assert f"layers {len(calls)}, off 0" in done.stdout
    shutil.copytree(tiny_bundle, tmp_path / "b")
    path = tmp_path / "b/golden/layers.bin"
    data, at = bytearray(path.read_bytes()), 16
    for node in calls:
        sizes = [
            int(np.prod(each.shape)) * np.dtype(each.dtype).itemsize
            for each in (*(one for one in node.inputs if one.source != "weights"), *node.outputs)
        ]
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little") + sum(sizes)
        if node.op == "BinaryConv":
            data[at - sizes[-1] : at] = bytes(sizes[-1])
    assert at == len(data)
    _expect(tmp_path / "b", path, data)
    done = _run(tmp_path / "b", "--self-test")
    assert done.returncode == 1
    assert "first layer that is off: tiny.conv (BinaryConv" in done.stdout
    _expect(tmp_path / "b", path, data[:-1])
    done = _run(tmp_path / "b", "--self-test")
    assert done.returncode == 2
    assert "layers.bin: truncated" in done.stderr
    path.unlink()
    assert _run(tmp_path / "b", "--self-test").returncode == 0


def test_ctrl_c_leaves_nothing(tiny_bundle, tmp_path):
    command = [tiny_bundle / "bin/edgedm-sample", "-n", "1000000", "--sampler", "ddpm", "-o", "a.npy"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tiny_bundle, tmp_path):
    def small_files_only() -> None:  # stands in for a full disk: the write fails in the middle
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    for name in ("a.npy", "a.png"):
        done = _run(tiny_bundle, "-n", 30, "-o", name, cwd=tmp_path, preexec_fn=small_files_only)
        assert done.returncode == 2
        assert "could not write" in done.stderr
    assert not list(tmp_path.iterdir())


_BASE_ONLY = """
import importlib.abc, importlib.metadata, re, sys

# What `pip install edgedm` brings, and nothing that only the extras bring.
base, queue = set(), ["numpy", "click", "pydantic"]
while queue:
    name = queue.pop()
    if name not in base:
        base.add(name)
        wanted = importlib.metadata.requires(name) or []
        queue += [re.match(r"[\\w.-]+", each)[0] for each in wanted if ";" not in each]
allowed = {"edgedm"} | {each.replace("-", "_") for each in base} | {"typing_inspection"} | set(sys.stdlib_module_names)

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in allowed and not name.startswith("_"):  # _sysconfigdata_... is Python's own
            raise ModuleNotFoundError(f"{name} is not in the base install", name=name)

sys.meta_path.insert(0, Refuse())
"""


def test_the_base_install_runs_a_bundle(tiny_bundle, tmp_path):
    """With every import refused that numpy, click and pydantic do not bring: the board's Python."""
    code = (
        f"{_BASE_ONLY}\n"
        "from edgedm.cli import main\n"
        "from edgedm.runtime import LocalRunner\n"
        f"with LocalRunner({str(tiny_bundle)!r}, threads=2) as runner:\n"
        "    runner.prepare(5, 'dpm-solver++', label=1)\n"
        "    for x, preview in runner.previews(3): pass\n"
        "    assert (x == runner.sample(1, 3)[0]).all()\n"
        f"sys.argv = ['edgedm', 'sample', {str(tiny_bundle)!r}, '-n', '2', '--steps', '5', '-o', 'a.png', '--json']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
