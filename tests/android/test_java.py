"""An app's use of org.edgedm, on a JVM that checks every JNI call: the C runtime's bits, its errors, and no warning."""

import re
import shutil
import subprocess
from pathlib import Path

import jvm
import numpy as np
import pytest
import tiny_latent
import tiny_model

from edgedm.android.sysroot import HEADERS
from edgedm.lower import compile as compile_graph
from edgedm.lower.codegen import TEMPLATES
from edgedm.runtime import LocalRunner

CHECKS = (
    "other versions",
    "shapes",
    "samples",
    "guided",
    "step",
    "preview",
    "start",
    "progress",
    "many callbacks",
    "refused progress",
    "throwing progress",
    "cancel",
    "cancel of what waits",
    "reentrant progress",
    "errors",
    "reasons",
    "closing",
    "sources",
    "variants",
    "assets",
    "threads",
    "two models",
    "latent model",
    "pixels",
)
_OTHER = {**tiny_model.CONFIG, "noise_schedule": {"num_train_timesteps": 500, "timestep_spacing": "trailing"}}
_COMPLAINT = re.compile(r"WARNING|FATAL ERROR in native method|JNI local refs")
_LACKING = ("model.c", "needs[] = {", 'needs[] = {"teleport", ')
_JNI = "android/jni.c"
_NEWER = ((_JNI, "INTERFACE = 2", "INTERFACE = 99"), (_JNI, '"x86_64"', '"another library answered"'))
_ODD = ((_JNI, "(jlong)sizeof(edm_description)", "(jlong)(sizeof(edm_description) + 8)"), _NEWER[1])
_UNCHECKED = ("android/jni.c", "return (*to->env)->ExceptionCheck(to->env) || !goes_on;", "return !goes_on;")


@pytest.fixture(scope="module")
def bundles() -> tuple[Path, Path, Path]:
    """The tiny model, one with another noise schedule, and one of latents, with a text condition and a decoder."""
    folder = tiny_model.folder()
    other = folder / "other"
    if not other.exists():
        other.mkdir()
        compile_graph(tiny_model.write_pair(other, _OTHER), other / "model.bundle", steps=5)
    return folder / "model.bundle", other / "model.bundle", tiny_latent.folder() / "model.bundle"


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    return jvm.build_classes(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def ran(bundles, classes, tmp_path_factory):
    """What java said, and the folder with what it drew."""
    folder = tmp_path_factory.mktemp("java")
    first, second, latent = bundles
    jvm.build_library(first, "tiny", folder)
    jvm.build_library(second, "other", folder)
    jvm.build_library(latent, "latent", folder)
    jvm.build_library(first, "elsewhere", folder, _LACKING)
    jvm.build_library(first, "newer", folder, *_NEWER)
    jvm.build_library(first, "odd", folder, *_ODD)
    weights = (first / "weights.bin").read_bytes()
    files = {"own/x86_64.bin": weights, "own/all.bin": b"another's", "all/all.bin": weights}
    files["compressed/x86_64.bin.compressed"] = weights
    for name, content in files.items():
        kind, _, file = name.partition("/")
        place = folder / "assets" / kind / "edgedm/tiny" / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (folder / "assets/empty").mkdir()
    (folder / "drawn").mkdir()
    weights_of_all = (each / "weights.bin" for each in bundles)
    return jvm.run(classes, folder, "Check", *weights_of_all, folder / "assets", folder / "drawn"), folder


def test_java_does_what_an_app_asks_for(ran):
    done, _ = ran
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [line.removeprefix("held: ") for line in done.stdout.splitlines() if line.startswith("held")] == [*CHECKS]


def test_every_status_of_the_c_interface_has_a_reason_in_java():
    statuses = re.findall(r"^  EDM_(\w+) = (\d+)", (TEMPLATES / "edgedm.h").read_text(), re.MULTILINE)
    names = [name for name, _ in statuses]
    assert [int(number) for _, number in statuses] == list(range(len(names)))
    java = (jvm.SOURCES / "org/edgedm/EdgedmException.java").read_text()
    reasons = re.findall(r"^    ([A-Z_]+),?$", java, re.MULTILINE)
    assert ["OK", *reasons] == [*names, "OTHER"]


def test_no_call_from_c_breaks_a_rule_of_jni(ran):
    done, _ = ran
    assert not _COMPLAINT.search(done.stdout + done.stderr)


def test_a_broken_rule_would_have_been_told(bundles, classes, ran, tmp_path):
    """An exception that a call left pending, and that nobody looked for."""
    jvm.build_library(bundles[0], "tiny", tmp_path, _UNCHECKED)
    for name in ("newer", "odd"):
        shutil.copy(ran[1] / f"libedgedm_{name}.so", tmp_path)
    (tmp_path / "drawn").mkdir()
    weights, drawn = bundles[0] / "weights.bin", tmp_path / "drawn"
    done = jvm.run(classes, tmp_path, "Check", weights, tmp_path, tmp_path, tmp_path, drawn)
    assert _COMPLAINT.search(done.stdout + done.stderr)


def test_java_draws_the_bits_of_the_c_interface(bundles, ran):
    _, folder = ran

    def drawn(name: str) -> bytes:
        return (folder / "drawn" / name).read_bytes()

    with LocalRunner(bundles[0], threads=2) as runner:
        runner.prepare(6, "ddpm", label=1)
        expected = {"samples": runner.sample(5, 7)}
        from_images = runner.sample(2, 1)
        expected["start"] = from_images
        expected["started"] = runner.sample(2, 2, start=from_images, strength=0.5)
        *_, (_, expected["estimate"]) = runner.previews(7, 2)
        runner.reset()
        x = ((np.arange(64, dtype=np.float32) - 32) / 32).reshape(1, 8, 8)
        expected["step"], expected["next step"] = (runner.run_step(step, x) for step in (0, 1))
        runner.prepare(10)
        expected["default"] = runner.sample(1, 7)
        runner.prepare(3, "dpm-solver++", label=0, timesteps=(900, 500, 60))
        expected["timesteps"] = runner.sample(2, 2**64 - 1, 4)
        runner.prepare(4, eta=0.5, label=1, guidance=2)
        expected["guided"] = runner.sample(1, 3)
    with LocalRunner(bundles[1]) as runner:
        runner.prepare(6, "ddpm", label=1)
        expected["other"] = runner.sample(1, 7)
    rising = np.arange(12, dtype=np.float32)
    text, negative = (
        each.reshape(tiny_latent.TOKENS) for each in ((rising - 6) / np.float32(6), rising / np.float32(12))
    )
    with LocalRunner(bundles[2], threads=2) as runner:
        runner.prepare(6, "ddpm", guidance=2.5, condition=text, negative=negative)
        expected["latent"] = runner.sample(1, 7)
        expected["decoded"] = runner.decode(expected["latent"][0])
        runner.prepare(6, "ddpm", condition=text)
        expected["unguided"] = runner.sample(1, 7)
    assert expected["latent"].tobytes() != expected["unguided"].tobytes()
    assert {path.name for path in (folder / "drawn").iterdir()} == set(expected)
    for name, images in expected.items():
        assert drawn(name) == images.tobytes(), name


def test_the_header_for_builds_without_an_ndk_is_that_of_the_jdk(tmp_path):
    """Every function lies where Java's own header has it."""
    text = (HEADERS / "jni.h").read_text()
    tables = {"JNINativeInterface": re.findall(r"\(\*(\w+)\)\(JNIEnv", text), "JNIInvokeInterface": ["GetEnv"]}
    assert len(tables["JNINativeInterface"]) > 25
    include, told = jvm.jdk() / "include", []
    shutil.copy(HEADERS / "jni.h", tmp_path / "jni.h")
    for suffix, folders in (("_", (include, include / "linux")), ("", (tmp_path,))):
        places = [f"offsetof(struct {table}{suffix}, {name})" for table, names in tables.items() for name in names]
        values = [
            *places,
            *(f"sizeof({each})" for each in ("jboolean", "jbyte", "jint", "jlong", "jmethodID", "JNIEnv")),
        ]
        values += ["JNI_OK", "JNI_ERR + 10", "JNI_ABORT", "JNI_VERSION_1_6", "JNI_TRUE"]
        prints = "".join(f'printf("%zu\\n", (size_t)({value}));' for value in values)
        source = tmp_path / "places.c"
        source.write_text(f"#include <jni.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{ {prints} }}")
        flags = [flag for folder in folders for flag in ("-isystem", str(folder))]
        subprocess.run(["gcc", *flags, str(source), "-o", str(tmp_path / "places")], check=True)
        told.append(subprocess.run([tmp_path / "places"], capture_output=True, text=True, check=True).stdout)
    assert told[0] == told[1]
