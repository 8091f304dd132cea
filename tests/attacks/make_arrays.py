"""Hostile arrays of NumPy and golden data."""

import io
import json
import struct
from pathlib import Path

import numpy as np


def write(files: Path) -> None:
    """Write `array` and `golden`."""
    for folder, made in (("array", arrays()), ("golden", golden())):
        (files / folder).mkdir(parents=True)
        for name, data in made.items():
            (files / folder / name).write_bytes(data)


def npy(header: str, body: bytes = b"") -> bytes:
    """A .npy file of format 1.0 with this header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin1") + body


def arrays() -> dict[str, bytes]:
    """File name -> contents; expected are 64 float32."""
    sound = io.BytesIO()
    np.save(sound, np.zeros((1, 1, 8, 8), np.float32))
    nan = np.zeros((1, 1, 8, 8), np.float32)
    nan[0, 0, 0, 0] = np.inf
    infinite = io.BytesIO()
    np.save(infinite, nan)

    def header(shape: str, dtype: str = "'<f4'") -> str:
        return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"

    return {
        "truncated.npy": sound.getvalue()[:-4],
        "infinite.npy": infinite.getvalue(),
        "a-byte-more.npy": sound.getvalue() + b"x",
        "huge-shape.npy": npy(header("(1, 1, 1099511627776, 8)"), bytes(256)),
        "product-wraps.npy": npy(header("(8589934592, 8589934592, 4)"), bytes(256)),
        "zero-shape.npy": npy(header("(1, 1, 0, 8)")),
        "negative-shape.npy": npy(header("(-1, 1, 8, 8)"), bytes(256)),
        "objects.npy": npy(header("(1, 1, 8, 8)", "'|O'"), b"cos\nsystem\n(S'true'\ntR."),
        "code-in-header.npy": npy("__import__('os').getpid()"),
        "deep-header.npy": npy("[" * 5000),
        "long-header.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{",
        "unknown-version.npy": b"\x93NUMPY\x09\x00" + sound.getvalue()[8:],
    }


def golden() -> dict[str, bytes]:
    """File name -> contents: safetensors whose metadata or numbers are wrong."""

    def file(metadata: dict[str, str], body: bytes = bytes(4), **entry: object) -> bytes:
        tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}
        text = json.dumps({"__metadata__": metadata, "step.0.x": tensor})
        return struct.pack("<Q", len(text)) + text.encode() + body

    def twice(metadata: dict[str, str], name: str) -> bytes:
        """Two tensors of the same bytes."""
        entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
        text = f'{{"__metadata__":{json.dumps(metadata)},"step.0.x":{entry},{name}:{entry}}}'
        return struct.pack("<Q", len(text)) + text.encode() + bytes(4)

    return {
        "steps-deep.safetensors": file({"golden_steps": "[" * 10_000}),
        "steps-no-list.safetensors": file({"golden_steps": "7"}),
        "steps-many.safetensors": file({"golden_steps": json.dumps(list(range(5000)))}),
        "layers-step-negative.safetensors": file({"layers_step": "-5"}),
        "layers-step-other-digits.safetensors": file({"layers_step": "\u0665"}),
        "steps-repeat.safetensors": file({"golden_steps": "[0, 0]"}),
        "steps-negative.safetensors": file({"golden_steps": "[-1]"}),
        "steps-huge.safetensors": file({"golden_steps": "[1" + "0" * 400 + "]"}),
        "noise-huge.safetensors": file({"golden_steps": "[0]", "rounding_noise": "[1" + "0" * 400 + "]"}),
        "noise-nan.safetensors": file({"golden_steps": "[0]", "rounding_noise": "[NaN]"}),
        "noise-infinite.safetensors": file({"golden_steps": "[0]", "rounding_noise": "[Infinity]"}),
        "nan.safetensors": file({"golden_steps": "[0]"}, struct.pack("<f", float("nan"))),
        "shape-wraps.safetensors": file({"golden_steps": "[0]"}, shape=[1 << 33, 1 << 33]),
        "shape-digits.safetensors": file({"golden_steps": "[0]"}, shape=[10**4000] * 16),
        "eight-bits.safetensors": file({"golden_steps": "[0]"}, dtype="F8_E4M3", shape=[4]),
        "shape-zero.safetensors": file({"golden_steps": "[0]"}, shape=[0]),
        "offset-beyond-end.safetensors": file({"golden_steps": "[0]"}, data_offsets=[1 << 40, (1 << 40) + 4]),
        "overlap.safetensors": twice({"golden_steps": "[0]"}, '"step.0.y"'),
        "name-twice.safetensors": twice({"golden_steps": "[0]"}, '"step.0.x"'),
        "truncated.safetensors": file({"golden_steps": "[0]"}, bytes(3)),
        "layers-step.safetensors": file({"golden_steps": "[0]", "layers_step": "first"}),
    }
