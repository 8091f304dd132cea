"""The same checkpoint and toolchain give the same bytes: two clean runs share nothing but the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgedm.lower.toolchain import cache_folder

CHECKPOINT = Path(__file__).parents[1] / "attacks/files/checkpoint/sound"
TINY = Path(__file__).parents[1] / "verify"  # a model a method, from a seed
METHODS = ("fp32", "bidm", "binarydm", "w4a4")  # the last is of EfficientDM's and DilateQuant's layers
SCRIPT = """
import os, shutil, sys
os.umask(int(sys.argv[2], 8))
sys.path[:0] = [sys.argv[5], os.path.dirname(sys.argv[5])]
import edgedm, tiny
from pathlib import Path
here = Path(sys.argv[1])
for method in sys.argv[6:]:
    room = here / method
    room.mkdir()
    if method == "fp32":
        shutil.copytree(sys.argv[3], room / sys.argv[4])
    checkpoint = str(room / sys.argv[4]) if method == "fp32" else tiny.checkpoint(method)
    edgedm.export(checkpoint, room / "model.onnx")
    edgedm.optimize(room / "model.onnx", room / "deploy.onnx")
    edgedm.compile(room / "deploy.onnx", room / "model.bundle", target="x86-64-v3", steps=4, cache=False)
"""


def build(folder: Path, number: int) -> None:
    """Export, optimise and compile with everything different that a machine may have different."""
    places = {name: folder / name.lower() for name in ("HOME", "TMPDIR")}
    if number > 1:  # one of the two compiles all from its source, the C library included
        places["XDG_CACHE_HOME"] = folder / "cache"
    for place in places.values():
        place.mkdir(parents=True)
    variables = {
        **os.environ,
        "XDG_CACHE_HOME": str(cache_folder().parent),
        **{name: str(place) for name, place in places.items()},
        "PYTHONHASHSEED": str(number),
        "OMP_NUM_THREADS": str(number),
        "TZ": ("UTC", "Asia/Kolkata")[number - 1],
        "LANG": ("C", "en_US.UTF-8")[number - 1],
    }
    words = [str(folder), ("022", "077")[number - 1], str(CHECKPOINT), f"checkpoint-{number}", str(TINY), *METHODS]
    subprocess.run([sys.executable, "-c", SCRIPT, *words], env=variables, check=True, cwd=folder)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory) -> list[Path]:
    here = tmp_path_factory.mktemp("rooms")
    made = [here / "a", here / "quite another/place of it"]
    for number, room in enumerate(made, 1):
        room.mkdir(parents=True)
        build(room, number)
    return made


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", METHODS)
def test_two_clean_builds_in_different_folders_are_equal_byte_for_byte(rooms, method):
    found = []
    for room in (each / method for each in rooms):
        files = [*room.glob("*.onnx"), *room.glob("*.safetensors"), *(room / "model.bundle").rglob("*")]
        found.append({str(path.relative_to(room)): path.read_bytes() for path in files if path.is_file()})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []
    bundles = [room / method / "model.bundle" for room in rooms]
    rights = [{p.name: p.stat().st_mode & 0o111 for p in bundle.rglob("*") if p.is_file()} for bundle in bundles]
    assert rights[0] == rights[1]
