"""The AAR: what is in it, that Android would load it, and what is refused."""

import io
import json
import shutil
import struct
import zipfile
from xml.etree import ElementTree

import pytest
import tiny_model
from tools import need

import edgedm
from edgedm.android import linker
from edgedm.android.aar import package
from edgedm.android.abi import ABIS
from edgedm.android.elf_lint import Demands, lint_library
from edgedm.android.sysroot import imports
from edgedm.bundle import load
from edgedm.errors import InvalidModelError, ToolchainError, UnsupportedError

ANDROID = "{http://schemas.android.com/apk/res/android}"
JAVA_8 = 52  # of a class file's header


def contents(aar) -> dict[str, bytes]:
    with zipfile.ZipFile(aar) as file:
        return {name: file.read(name) for name in file.namelist()}


def manifest_of(bundle) -> dict:
    return json.loads((bundle / "manifest.json").read_text())


def assert_loads(files, name, abi_name, bundle):
    """The library is one that Android loads, under the name of its file."""
    abi = next(each for each in ABIS if each.name == abi_name)
    library = f"libedgedm_{name}.so"
    exports = (load(bundle).manifest.prefix, "JNI_OnLoad")
    assert lint_library(files[f"jni/{abi_name}/{library}"], Demands(abi, library, imports(), exports)) == []


@pytest.fixture(scope="module")
def aar(arm64_bundle, tmp_path_factory):
    need("javac")
    path = tmp_path_factory.mktemp("aar") / "digits.aar"
    return path, package([arm64_bundle], path)


def test_it_has_what_an_apps_build_looks_for(aar, arm64_bundle):
    path, outcome = aar
    files = contents(path)
    assert set(files) == {
        "AndroidManifest.xml",
        "R.txt",
        "assets/edgedm/digits/all.bin",
        "classes.jar",
        "jni/arm64-v8a/libedgedm_digits.so",
        "proguard.txt",
    }
    assert files["assets/edgedm/digits/all.bin"] == (arm64_bundle / "weights.bin").read_bytes()
    assert outcome.figures["bytes.aar"] == path.stat().st_size
    assert outcome.figures["bytes.library.digits.arm64-v8a"] == len(files["jni/arm64-v8a/libedgedm_digits.so"])
    assert outcome.details["models"] == {"digits": ["arm64-v8a"]}


def test_its_manifest_names_the_package_and_the_least_android(aar):
    root = ElementTree.fromstring(contents(aar[0])["AndroidManifest.xml"])
    assert (root.tag, root.get("package")) == ("manifest", "org.edgedm.digits")
    assert root.find("uses-sdk").get(f"{ANDROID}minSdkVersion") == "24"


def test_its_classes_are_for_java_8_and_none_of_them_is_androids(aar):
    with zipfile.ZipFile(io.BytesIO(contents(aar[0])["classes.jar"])) as jar:
        classes = {name: jar.read(name) for name in jar.namelist() if name.endswith(".class")}
    assert {"org/edgedm/Model.class", "org/edgedm/Session.class", "org/edgedm/android/Assets.class"} <= set(classes)
    assert all(name.startswith("org/edgedm/") for name in classes)
    assert {struct.unpack_from(">H", data, 6)[0] for data in classes.values()} == {JAVA_8}


def test_what_the_library_finds_by_name_is_kept_by_proguard(aar):
    rules = contents(aar[0])["proguard.txt"].decode()
    for name in ("org.edgedm.Native", "loaded(int, long, long)", "progress(long, long)", "<init>(int, byte[])"):
        assert name in rules


def test_android_would_load_its_library(aar, arm64_bundle):
    assert_loads(contents(aar[0]), "digits", "arm64-v8a", arm64_bundle)


def test_the_same_bundles_make_the_same_bytes(aar, arm64_bundle, tmp_path):
    package([arm64_bundle], tmp_path / "digits.aar")
    assert (tmp_path / "digits.aar").read_bytes() == aar[0].read_bytes()


def test_what_is_no_name_no_aar_or_no_android_is_refused(arm64_bundle, tmp_path):
    for output, match in (("model.zip", "ends in .aar"), ("My-Model.aar", "would take 'My-Model' for no name")):
        with pytest.raises(UnsupportedError, match=match):
            package([arm64_bundle], tmp_path / output)
    for word in ("class", "native", "null"):
        with pytest.raises(UnsupportedError, match=f"{word!r} for a word of its own in the package org.edgedm.{word}"):
            package([f"digits={arm64_bundle}"], tmp_path / f"{word}.aar")
    with pytest.raises(UnsupportedError, match="would take 'My-Model' for no name"):
        package([f"digits={arm64_bundle}"], tmp_path / "My-Model.aar")
    with pytest.raises(UnsupportedError, match="would take '7' for no name"):
        package([f"7={arm64_bundle}"], tmp_path / "digits.aar")
    with pytest.raises(UnsupportedError, match="one bundle or more"):
        package([], tmp_path / "digits.aar")
    with pytest.raises(UnsupportedError, match="is not one for Android"):
        package([tiny_model.folder() / "model.bundle"], tmp_path / "digits.aar")
    with pytest.raises(InvalidModelError, match="no such file"):
        package([tmp_path / "nothing.bundle"], tmp_path / "digits.aar")
    assert not list(tmp_path.iterdir())


def test_one_abi_twice_is_refused(arm64_bundle, tmp_path):
    with pytest.raises(UnsupportedError, match="both are 'digits' for arm64-v8a; compile variants"):
        package([arm64_bundle, f"digits={arm64_bundle}"], tmp_path / "digits.aar")


def test_a_bundle_of_another_edgedm_is_refused(arm64_bundle, tmp_path):
    other = _changed(arm64_bundle, tmp_path / "other.bundle", edgedm="0.0.1")
    with pytest.raises(InvalidModelError, match=r"was compiled by edgedm 0\.0\.1"):
        package([other], tmp_path / "digits.aar")


def test_a_bundle_without_its_librarys_objects_is_refused_for_that(arm64_bundle, tmp_path):
    files = {name: each for name, each in manifest_of(arm64_bundle)["files"].items() if name != linker.MERGED}
    other = _changed(arm64_bundle, tmp_path / "other.bundle", files=files)
    (other / linker.MERGED).unlink()
    with pytest.raises(InvalidModelError, match=r"has no lib/libedgedm\.o, which"):
        package([other], tmp_path / "digits.aar")


def test_different_models_under_one_name_are_refused(arm64_bundle, tmp_path):
    manifest, name = manifest_of(arm64_bundle), "android-armv7+neon"
    target = {**manifest["target"], "name": name}
    sections = [{**each, "variants": [name]} for each in manifest["sections"]]
    other = _changed(arm64_bundle, tmp_path / "other.bundle", classes=7, target=target, sections=sections)
    with pytest.raises(InvalidModelError, match="differ in classes, so they are not one model 'digits'"):
        package([arm64_bundle, other], tmp_path / "digits.aar")


def test_without_a_jdk_it_says_how_to_get_one(arm64_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ToolchainError, match="install a JDK"):
        package([arm64_bundle], tmp_path / "digits.aar")


def _changed(bundle, folder, **changes):
    """A bundle whose manifest says something else."""
    shutil.copytree(bundle, folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest_of(folder), **changes}))
    return folder


def test_several_abis_and_models_go_into_one(android_bundles, tmp_path):
    need("javac")
    bundles = [*(f"digits={path}" for path in android_bundles.values()), f"faces={android_bundles['arm64-v8a']}"]
    outcome = edgedm.package(bundles, tmp_path / "models.aar")
    files = contents(tmp_path / "models.aar")
    assert outcome.details["models"] == {"digits": [*android_bundles], "faces": ["arm64-v8a"]}
    for abi, bundle in android_bundles.items():
        assert_loads(files, "digits", abi, bundle)
        own = files.get(f"assets/edgedm/digits/{abi}.bin", files["assets/edgedm/digits/all.bin"])
        assert own == (bundle / "weights.bin").read_bytes()
    assert_loads(files, "faces", "arm64-v8a", android_bundles["arm64-v8a"])
    assert files["AndroidManifest.xml"].count(b"org.edgedm.models") == 1
