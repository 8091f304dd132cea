"""Coverage-guided fuzzing of one Python loader: python fuzz/loaders.py NAME CORPUS [libFuzzer's options]

Whatever the bytes, a loader returns or raises an error of edgedm; anything else is a finding. `fuzz/run.py` runs all.
"""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edgedm"]):
    from edgedm.arrays import read_array
    from edgedm.bundle.store import load as load_bundle
    from edgedm.errors import EdgedmError
    from edgedm.export.graph_io import graph_info, load_graph
    from edgedm.golden_file import read_golden
    from edgedm.models import load as load_checkpoint
    from edgedm.models.config import read_config
    from edgedm.models.importers import import_checkpoint
    from edgedm.targets import kernels  # noqa: F401  (before the table, which it imports)
    from edgedm.targets.tuning.crossover import read_table
    from edgedm.tensor_file import read_header
    from edgedm.verify.gate import load_gate

SOUND = Path(__file__).parents[1] / "tests/attacks/files"


def _graph(path: Path) -> object:
    return graph_info(load_graph(path))


def _authors(path: Path) -> object:
    return import_checkpoint(path, "ldm", head_channels=16, image_size=8, weights="raw")


def _inside(kind: str, name: str, load: Callable[[Path], object], room: Path) -> Callable[[Path], object]:
    """Let the bytes stand for the file `name` of a sound folder."""
    folder = room / kind
    shutil.copytree(SOUND / kind / "sound", folder)
    load(folder)  # what is imported when first used would look like a slow input

    def run(path: Path) -> object:
        shutil.copyfile(path, folder / name)
        return load(folder)

    return run


def target(name: str, room: Path) -> tuple[Callable[[Path], object], str]:
    """The loader called `name` as a function of a path, and the suffix that it asks for."""
    return {
        "graph": lambda: (_graph, ".onnx"),
        "config": lambda: (read_config, ".json"),
        "weights": lambda: (_inside("checkpoint", "model.safetensors", load_checkpoint, room), ".safetensors"),
        "header": lambda: (read_header, ".safetensors"),
        "manifest": lambda: (_inside("bundle", "manifest.json", load_bundle, room), ".json"),
        "authors": lambda: (_authors, ".pt"),
        "golden": lambda: (read_golden, ".safetensors"),
        "array": lambda: (lambda path: read_array(path, "start", (1, 1, 8, 8)), ".npy"),
        "tuning": lambda: (read_table, ".json"),
        "gate": lambda: (load_gate, ".toml"),
    }[name]()


def main() -> None:
    """Hand over to libFuzzer."""
    room = Path(tempfile.mkdtemp(prefix="edgedm-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    load, suffix = target(sys.argv[1], room)
    path = room / f"input{suffix}"

    def one_input(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(EdgedmError):
            load(path)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
