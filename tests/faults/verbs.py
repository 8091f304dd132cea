"""A process that runs verbs in children of its own, under the shim (`shim.c`), which it must be preloaded with.

    LD_PRELOAD=shim.so python verbs.py FOLDER

It makes small artefacts in FOLDER, which the verbs read. Requests are lines of JSON, {"verb": NAME, "folder": target's
folder, "at": N, "mode": a letter of the shim or "", "whole": false where what a verb does before it writes may be left
out, "seconds": after how many of its work the child is killed wherever it is, or null}; the answer tells how many
changes there were, how many seconds it took and what was raised; none comes from a child that was killed.
"""

import ctypes
import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
SOUND = TESTS / "attacks/files/checkpoint/sound"
FILES = {
    "optimize --dump": ("01.onnx",),
    "sample": ("images.npy",),
    "edgedm-sample": ("images.png",),
    "verify": ("page.html", "page.md", "junit.xml"),
    "demo": ("index.html", "images.png"),
    "web": ("page.html",),
    "package": ("model.aar",),
    "training": ("state.pt", "curve.json"),
}
"""Verbs whose targets are files, each one of its own."""
Verb = Callable[[Path], object]


def verbs(room: Path) -> dict[str, Verb]:
    """Every verb that writes, as a function of the folder that its target is in."""
    import numpy as np

    import edgedm
    from edgedm.android import aar
    from edgedm.bundle import load as load_bundle
    from edgedm.bundle import sign
    from edgedm.demo.page import Page
    from edgedm.demo.run import write
    from edgedm.export.graph_io import load_graph, save_graph
    from edgedm.models import load
    from edgedm.models.checkpoint import save
    from edgedm.runtime.library import Library
    from edgedm.runtime.sample import sample_bundle
    from edgedm.training.options import LoopOptions
    from edgedm.verify import write_reports

    real, kept = aar._linked, {}

    def linked(part: Any) -> bytes:
        return kept.get(part.library) or kept.setdefault(part.library, real(part))

    # Both take long and write elsewhere; a JDK makes the classes, which not every machine has.
    aar._linked, aar.classes_jar = linked, lambda: b"classes"
    edgedm.package([room / "arm64.bundle"], room / "app.aar")
    checkpoint = load(SOUND)
    graph, bundle = room / "deploy.onnx", room / "model.bundle"
    exported = room / "model.onnx"
    opened, graph_model = load_bundle(bundle), load_graph(exported)
    page, rows = Page("demo", ""), [np.zeros((10, 1, 8, 8), np.float32)] * 3
    native = Library(opened.library, opened.manifest.prefix)
    image = np.zeros(opened.manifest.image_shape, np.float32).ctypes

    def compiled(folder: Path) -> object:
        return edgedm.compile(graph, folder / "model.bundle", steps=4)  # kept since the first time

    def drawn(folder: Path) -> object:
        return sample_bundle(bundle, folder / "images.npy", n=40, steps=1)  # more than one write

    def written_in_c(folder: Path) -> object:
        place = os.fsencode(folder / "images.png")
        return native.check("write_images", place, image.data_as(ctypes.POINTER(ctypes.c_float)), 1)

    def reported(folder: Path) -> object:
        return write_reports({str(folder / name): b"new " * 5000 for name in FILES["verify"]})

    def imported(folder: Path) -> object:
        return edgedm.import_checkpoint(
            room / "authors.ckpt", "ldm", folder / "checkpoint", weights="raw", head_channels=16, image_size=8
        )

    return {
        "import": imported,
        "quantize": lambda folder: save(checkpoint, folder / "checkpoint"),
        "export": lambda folder: edgedm.export(checkpoint, folder / "model.onnx"),
        "optimize": lambda folder: edgedm.optimize(exported, folder / "deploy.onnx"),
        "optimize --dump": lambda folder: save_graph(graph_model, folder / "01.onnx"),
        "compile": compiled,
        "sample": drawn,
        "edgedm-sample": written_in_c,
        "verify": reported,
        "sign": lambda folder: sign(folder / "model.bundle", room / "key.pem"),
        "demo": lambda folder: write(folder, page, rows),
        "web": lambda folder: edgedm.web(room / "page.bundle", folder / "page.html"),
        "package": lambda folder: edgedm.package([room / "arm64.bundle"], folder / "model.aar"),
        "training": lambda folder: training_state(folder).save(LoopOptions(9, 1e-3), finished=False),
    }


def training_state(folder: Path) -> Any:
    """The state after one iteration of a loop, the same each time."""
    import torch

    from edgedm.training.processes import Processes
    from edgedm.training.state import State

    torch.manual_seed(0)
    module = torch.nn.Linear(8, 8)
    optimiser = torch.optim.Adam(module.parameters())
    state = State(folder, module, torch.nn.Linear(8, 8), optimiser, {}, Processes())
    loss = module(torch.ones(1, 8)).square().mean()
    loss.backward()
    optimiser.step()
    state.add({"loss": loss})
    state.point()
    return state


def only_writing(run: Verb, module: Any, room: Path) -> Verb:
    """The last part of a verb, where it writes: what takes long, and writes nothing, is done here, once."""
    kept: dict[Path, bytes | None] = {}
    real, module.write_together = module.write_together, kept.update
    run(room)
    module.write_together = real
    return lambda folder: real({folder / path.name: data for path, data in kept.items()})


def prepare(room: Path) -> None:
    """Make the artefacts that the verbs read."""
    import torch
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    import edgedm

    sys.path.append(str(TESTS / "models/importers"))
    import authors_files
    import openai_reference

    edgedm.export(str(SOUND), room / "model.onnx")
    edgedm.optimize(room / "model.onnx", room / "deploy.onnx")
    edgedm.compile(room / "deploy.onnx", room / "model.bundle", steps=4)
    edgedm.compile(room / "deploy.onnx", room / "page.bundle", target="wasm32+simd128", steps=4)
    edgedm.compile(room / "deploy.onnx", room / "arm64.bundle", target="android-arm64", steps=4)
    state = openai_reference.float_state(openai_reference.modules(openai_reference.Arch()))
    torch.save(authors_files.lightning(state), room / "authors.ckpt")
    private = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (room / "key.pem").write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (room / "key.pub").write_bytes(public)


def serve(room: Path) -> None:
    """Answer requests until standard input ends."""
    shim = ctypes.CDLL(None)
    shim.shim_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
    shim.shim_count.restype = ctypes.c_long
    prepare(room)
    known = verbs(room)
    quick = {
        name: only_writing(known[name], importlib.import_module(module), room)
        for name, module in {"export": "edgedm.export.exporter", "optimize": "edgedm.passes.driver"}.items()
    }
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.write(writer, b"\n")  # it begins
            run = known[request["verb"]]
            answer = attempt(shim, run if request["whole"] else quick.get(request["verb"], run), request)
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
        os.close(writer)
        os.read(reader, 1)
        if request["seconds"] is not None and not select.select([reader], [], [], request["seconds"])[0]:
            os.kill(child, signal.SIGKILL)
        with os.fdopen(reader) as stream:
            text = stream.read()
        _, status = os.waitpid(child, 0)
        print(text or json.dumps({"killed": os.WIFSIGNALED(status)}), flush=True)


def attempt(shim: Any, run: Verb, request: dict[str, Any]) -> dict[str, Any]:
    """Run a verb armed."""
    folder, answer = Path(request["folder"]), {"killed": False, "error": ""}
    shim.shim_arm(os.fsencode(folder), request["at"], ord(request["mode"] or "\0"))
    started = time.monotonic()
    try:
        run(folder)
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    answer["seconds"], answer["count"] = time.monotonic() - started, shim.shim_count()
    return answer


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
