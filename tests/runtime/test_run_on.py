"""`edgedm run-on` against stand-ins for ssh and adb that run every line in a shell of this machine."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny_latent

from edgedm.bench.models import bench_model
from edgedm.bundle import Variant, load
from edgedm.bundle.store import MANIFEST
from edgedm.errors import EdgedmError, InvalidModelError, ToolchainError, UnsupportedError
from edgedm.runtime.opening import require_native
from edgedm.runtime.remote import _is_read, _kinds, run_on

SSH = """#!/bin/sh
unexpected() { echo "unexpected: $*" >&2; exit 255; }
[ "$1 $2 $3 $4" = "-o BatchMode=yes -o ConnectTimeout=15" ] || unexpected "$@"
[ "$5 $6 $7 $8 $9" = "-o ServerAliveInterval=15 -o ServerAliveCountMax=4 --" ] || unexpected "$@"
ended() { echo edgedm-began; cat "$STAND_IN_SAID" 2>/dev/null; echo; echo "edgedm-ended $1"; exit "$1"; }
shift 9; host=$1; line=$2
case $host in
  nowhere) echo "ssh: Could not resolve hostname nowhere" >&2; exit 255 ;;
  foreign) case $line in */bin/edgedm-sample*) echo "Exec format error" >&2; ended 126 ;; esac ;;
  older) line=$(echo "$line" | sed "s,[^ ]*/bin/edgedm-sample,$STAND_IN_ILLEGAL,") ;;
  wrong) case $line in *--self-test*) ended 1 ;; esac ;;
  mistaken) case $line in *--self-test*) ended 0 ;; esac ;;
  cut) case $line in *--self-test*) echo edgedm-began; cat "$STAND_IN_SAID"; exit 0 ;; esac ;;
  cut-in-the-mark) case $line in *--self-test*) ended 1 | head -c -2; exit 0 ;; esac ;;
  timeless) case $line in *--times*) ended 0 ;; esac ;;
  cut-later) case $line in *--times*) echo edgedm-began; exit 0 ;; esac ;;
  cut-and-keeps) case $line in
      *--times*) echo edgedm-began; exit 0 ;;
      *"rm -rf"*) echo "rm: busy" >&2; ended 1 ;;
    esac ;;
  full-memory) case $line in *--times*) ended 137 ;; esac ;;
  greets) echo "Welcome!"; sh -c "TMPDIR=$STAND_IN_ROOM; export TMPDIR; $line"; code=$?; echo "Goodbye!"; exit $code ;;
  broken) case $line in *--self-test*) echo "edgedm-sample: weights.bin: wrong hash" >&2; ended 2 ;; esac ;;
  keeps) case $line in *"rm -rf"*) echo "rm: busy" >&2; ended 1 ;; esac ;;
  gone) case $line in *"rm -rf"*) echo "connection lost" >&2; exit 255 ;; esac ;;
  full) case $line in *"tar -x"*) echo "tar: no space left" >&2; ended 2 ;; esac ;;
esac
echo "$line" >> "$STAND_IN_LOG"
TMPDIR=$STAND_IN_ROOM exec python3 -c "$STAND_IN_LOGIN" "$line"
"""
# As sshd and ssh: the login shell becomes a lone command, and 255 is all that is told of a signal that ends it.
LOGIN = """import subprocess, sys
code = subprocess.call(["bash", "-c", sys.argv[1]])
sys.exit(255 if code < 0 else code)
"""
ILLEGAL = "#!/bin/sh\nkill -ILL $$\n"
ADB = """#!/bin/sh
[ "$1 $2 $3 $4" = "-s phone shell -T" ] || { echo "adb: device '$2' not found" >&2; exit 255; }
exec sh -c "$(echo "$5" | sed "s,/data/local/tmp,$STAND_IN_ROOM,g")"
"""


@pytest.fixture(autouse=True)
def room(tmp_path, monkeypatch):
    """The folder of the other machine; the stand-ins come first in PATH."""
    for name, text in (("ssh", SSH), ("adb", ADB), ("illegal", ILLEGAL)):
        program = tmp_path / "tools" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    (tmp_path / "room").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_ROOM", str(tmp_path / "room"))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("STAND_IN_SAID", str(tmp_path / "said"))
    monkeypatch.setenv("STAND_IN_LOGIN", LOGIN)
    monkeypatch.setenv("STAND_IN_ILLEGAL", str(tmp_path / "tools" / "illegal"))
    yield tmp_path / "room"
    assert not list((tmp_path / "room").iterdir())  # whatever happened, nothing is left there


@pytest.mark.parametrize(("protocol", "host"), [("ssh", "me@board"), ("adb", "phone")])
def test_it_brings_back_the_self_test_and_the_times(tiny_bundle, protocol, host):
    outcome = run_on(protocol, host, tiny_bundle, threads=(1, 2), steps=5, images=3)
    assert outcome.ok
    figures = outcome.figures
    assert figures["self_test.steps"] == 3
    assert 0 <= figures["self_test.worst_error"] < 1e-3
    for count in (1, 2):
        step = f"step_ms.edgedm.t{count}"
        assert 0 < figures[f"{step}.decile1"] <= figures[step] <= figures[f"{step}.decile9"]
        assert figures[f"startup_ms.edgedm.t{count}"] > 0
        assert figures[f"bytes.peak_rss.t{count}"] > 1 << 20
    assert figures["bytes.peak_rss"] == figures["bytes.peak_rss.t1"]
    assert figures["cores"] >= 1
    assert outcome.details["machine"].startswith("Linux")
    assert " x " in outcome.details["processor"]
    assert outcome.details["target"] == load(tiny_bundle).manifest.target.name


def test_its_names_are_those_of_the_benchmark(tiny_bundle):
    """One script reads both; what only one of the two knows has a name of its own."""
    there = run_on("ssh", "board", tiny_bundle, threads=(1,), steps=2, images=1).figures
    here = bench_model(tiny_bundle, ("none",), (1,), seconds=0.05).figures
    shared = {"step_ms.edgedm.t1", "step_ms.edgedm.t1.decile1", "step_ms.edgedm.t1.decile9", "bytes.peak_rss"}
    assert shared <= set(there) & set(here)


def test_a_variant_can_be_named(tiny_bundle, tmp_path):
    name = load(tiny_bundle).manifest.target.name
    outcome = run_on("ssh", "board", tiny_bundle, threads=(1,), steps=2, images=1, variant=name)
    assert outcome.details["target"] == name
    assert (tmp_path / "log").read_text().count(f"--variant {name}") == 2  # the self-test and an image
    with pytest.raises(UnsupportedError, match="variant 'none'"):
        run_on("ssh", "board", tiny_bundle, variant="none")


def test_only_what_runs_is_copied(tiny_bundle, tmp_path):
    run_on("ssh", "board", tiny_bundle, threads=(1,))
    lines = (tmp_path / "log").read_text()
    assert "--threads 1" in lines
    assert "--threads 2" not in lines
    assert "rm -rf" in lines


def test_of_several_variants_the_layers_of_that_which_is_named_are_copied(tiny_bundle):
    bundle = load(tiny_bundle)
    own, target = bundle.manifest.target.name, bundle.manifest.target.model_copy(update={"name": "lesser"})
    lesser = Variant(target=target, arena_bytes=0, kernel_bytes=0, nodes=[], slow=[])
    several = replace(bundle, manifest=bundle.manifest.model_copy(update={"others": [lesser]}))
    names = [f"golden/layers.{name}.bin" for name in (own, "lesser", "other")]
    assert [_is_read(name, several) for name in names] == [True, True, False]
    assert [_is_read(name, several.of("lesser")) for name in names] == [False, True, False]
    assert [_is_read(name, several.of(own)) for name in names] == [True, False, False]
    assert _is_read("golden/layers.bin", bundle)
    assert not _is_read("golden/golden.safetensors", bundle)


def test_the_command_line_prints_one_object(tiny_bundle):
    command = [sys.executable, "-m", "edgedm.cli", "run-on", "ssh", "board", str(tiny_bundle), "--steps", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["figures"]["self_test.ok"] == 1
    done = subprocess.run([*command, "--threads", "many"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--threads: expected numbers" in done.stderr


@pytest.mark.parametrize(
    ("said", "worst"),
    [
        ("timestep  900  relative error 3.0e+00\n", 3.0),
        ("timestep  900  relative error 1.0e-09\ntimestep  500  relative error -nan\n", math.nan),
        ("timestep  900  relative error nan\ntimestep  500  relative error 1.0e-09\n", math.nan),
        ("timestep  900  relative error 2.0e+00\ntimestep  500  relative error inf\n", math.inf),
    ],
)
def test_a_failed_self_test_fails_the_check(tiny_bundle, tmp_path, said, worst):
    other = (
        "decoder        relative error 7.0e+00\nfirst layer that is off: a: relative error 9.0e+00 (allowed 1e-04)\n"
        "self-test FAILED\n"
    )
    (tmp_path / "said").write_text(said + other)
    outcome = run_on("ssh", "wrong", tiny_bundle, threads=(1,))
    assert not outcome.ok
    assert outcome.figures["self_test.worst_error"] == pytest.approx(worst, rel=0, nan_ok=True)
    assert outcome.figures["self_test.steps"] == said.count("timestep")


@pytest.mark.parametrize("host", ["wrong", "mistaken"])
def test_a_self_test_without_a_verdict_is_neither_passed_nor_failed(tiny_bundle, tmp_path, host):
    (tmp_path / "said").write_text("timestep  900  rela\n")
    with pytest.raises(ToolchainError, match="the self-test gave no verdict: timestep  900  rela"):
        run_on("ssh", host, tiny_bundle, threads=(1,))


def test_the_verdict_counts_where_the_exit_code_is_another(tiny_bundle, tmp_path):
    (tmp_path / "said").write_text("timestep  900  relative error 3.0e+00\nself-test FAILED\n")
    assert not run_on("ssh", "mistaken", tiny_bundle, threads=(1,), steps=2, images=1).ok


@pytest.mark.parametrize(
    ("host", "at"), [("cut", "--self-test"), ("cut-in-the-mark", "--self-test"), ("cut-later", "--times")]
)
def test_a_connection_that_is_lost_is_no_result_though_it_ends_with_0(tiny_bundle, tmp_path, host, at):
    """adb's does, where the telephone goes in the middle of a command."""
    (tmp_path / "said").write_text("timestep  900  relative error 1.0e-09\nself-test passed\n")
    with pytest.raises(ToolchainError, match=f"the connection was lost before `.*{at}.*` ended"):
        run_on("ssh", host, tiny_bundle, threads=(1,), steps=2, images=1)


def test_a_drawing_without_a_time_is_an_error(tiny_bundle):
    with pytest.raises(EdgedmError, match="told no time of a step"):
        run_on("ssh", "timeless", tiny_bundle, threads=(1,), steps=2, images=1)


def test_what_stays_there_is_named_though_something_else_failed_first(tiny_bundle, room):
    with pytest.raises(
        ToolchainError, match=r"left behind there: .*edgedm\..*rm: busy; after: .*connection was lost"
    ) as error:
        run_on("ssh", "cut-and-keeps", tiny_bundle, threads=(1,), steps=2, images=1)
    (left,) = room.iterdir()
    assert str(left) in str(error.value)
    shutil.rmtree(left)


def test_a_login_may_print_something(tiny_bundle):
    outcome = run_on("ssh", "greets", tiny_bundle, threads=(1,), steps=2, images=1)
    assert outcome.ok and outcome.figures["cores"] >= 1
    assert outcome.details["machine"].startswith("Linux")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("processor: 0\nmodel name\t: EPYC\n\nprocessor: 1\nmodel name\t: EPYC\n", "2 x EPYC"),
        ("model name\t: ARMv7 rev 4\nCPU part\t: 0xd03\n\nmodel name\t: ARMv7 rev 4\nCPU part\t: 0xd03\n", "2 x 0xd03"),
        ("CPU part\t: 0xd03\n\nCPU part\t: 0xd09\n\nHardware\t: board\n", "1 x 0xd03, 1 x 0xd09"),
        ("hart\t: 0\nuarch\t: sifive,u74\n", "1 x sifive,u74"),
        ("", ""),
    ],
)
def test_cores_are_counted_by_kind(text, kinds):
    assert _kinds(text) == kinds


@pytest.mark.parametrize(("host", "reason"), [("keeps", "ended with 1: rm: busy"), ("gone", "connection lost")])
def test_what_cannot_be_removed_there_is_said_and_loses_no_figure(tiny_bundle, room, host, reason):
    outcome = run_on("ssh", host, tiny_bundle, threads=(1,), steps=2, images=1)
    assert outcome.ok and outcome.figures["step_ms.edgedm.t1"] > 0
    (left,) = room.iterdir()
    assert str(left) in outcome.details["left_behind"] and reason in outcome.details["left_behind"]
    shutil.rmtree(left)


def test_the_folder_there_may_have_a_space_in_its_name(tiny_bundle, room, monkeypatch):
    (room / "a b").mkdir()
    monkeypatch.setenv("STAND_IN_ROOM", str(room / "a b"))
    assert run_on("ssh", "me@board", tiny_bundle, threads=(1,), steps=2, images=1).ok
    (room / "a b").rmdir()  # which holds nothing any more


def test_a_model_with_a_text_condition_is_timed_too(room):
    bundle = tiny_latent.folder() / "model.bundle"
    assert load(bundle).manifest.condition_shape is not None
    outcome = run_on("ssh", "me@board", bundle, threads=(1,), steps=2, images=1)
    assert outcome.ok and outcome.figures["step_ms.edgedm.t1"] > 0


def test_a_self_test_that_could_not_run_is_no_failed_check(tiny_bundle):
    with pytest.raises(EdgedmError, match=r"ssh broken.*ended with 2.*wrong hash"):
        run_on("ssh", "broken", tiny_bundle)


def test_standard_input_is_left_alone(tiny_bundle, monkeypatch):
    given = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: given.append(options) or run(*words, **options))
    run_on("ssh", "board", tiny_bundle, threads=(1,))
    assert all(each.get("stdin") == subprocess.DEVNULL for each in given if not each.get("input"))
    assert len([each for each in given if each.get("input")]) == 1  # the archive


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("nowhere", "Could not resolve hostname"),
        ("foreign", r"cannot run programs for .*Exec format error"),
        ("older", "signal 4"),
        ("full", "no space left"),
        ("full-memory", r"signal 9 \(killed: perhaps its memory was full"),
    ],
)
def test_a_machine_that_cannot_is_an_error_that_says_why(tiny_bundle, host, message):
    with pytest.raises(ToolchainError, match=message):
        run_on("ssh", host, tiny_bundle)


def test_bad_input_is_refused_before_anything_is_copied(tiny_bundle, tmp_path, monkeypatch):
    for arguments in (("telnet", "board"), ("ssh", "-oProxyCommand=x"), ("ssh", "")):
        with pytest.raises(UnsupportedError):
            run_on(*arguments, tiny_bundle)
    with pytest.raises(UnsupportedError, match="from 1 up"):
        run_on("ssh", "board", tiny_bundle, threads=(0,))
    with pytest.raises(InvalidModelError):
        run_on("ssh", "board", tmp_path)
    assert not (tmp_path / "log").exists()
    with pytest.raises(ToolchainError, match="device 'other' not found"):
        run_on("adb", "other", tiny_bundle)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="ssh is missing: install"):
        run_on("ssh", "board", tiny_bundle)


def test_a_bundle_of_another_machine_is_not_timed_here(tiny_bundle, tmp_path):
    require_native(load(tiny_bundle))
    shutil.copytree(tiny_bundle, tmp_path / "other.bundle")
    manifest = json.loads((tmp_path / "other.bundle" / MANIFEST).read_text())
    manifest["target"]["name"] = "riscv64"
    manifest["sections"] = [{**each, "variants": ["riscv64"]} for each in manifest["sections"]]
    (tmp_path / "other.bundle" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UnsupportedError, match=r"compiled for riscv64.*edgedm run-on ssh HOST"):
        require_native(load(tmp_path / "other.bundle"))
