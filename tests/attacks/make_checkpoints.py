"""Hostile checkpoints: `NAME.config.json` and `NAME.model.safetensors` stand for these files of a sound folder."""

import copy
import json
import struct
from pathlib import Path
from typing import Any

UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 2,
    "attention_head_dim": 4,
}


def write(files: Path) -> None:
    """Write `checkpoint/sound` and what attacks it."""
    from edgedm.models import CheckpointConfig, build
    from edgedm.models.checkpoint import save
    from edgedm.models.config import Architecture

    folder = files / "checkpoint"
    folder.mkdir(parents=True)
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=UNET),
        method="fp32",
        roles={},
        noise_schedule={"num_train_timesteps": 1000},
        null_class=None,
    )
    save(build(config, seed=0), folder / "sound")
    values = json.loads((folder / "sound/config.json").read_text())
    for name, change in configs().items():
        changed = copy.deepcopy(values)
        result = change(changed)
        text = result if isinstance(result, str) else json.dumps(changed)
        (folder / f"{name}.config.json").write_text(text)
    data = (folder / "sound/model.safetensors").read_bytes()
    for name, made in tensors(data).items():
        (folder / f"{name}.model.safetensors").write_bytes(made)


def configs() -> dict[str, Any]:
    """Changes of config.json: each edits the values in place, or returns a text."""

    def architecture(**changes: Any) -> Any:
        return lambda values: values["architecture"]["config"].update(changes)

    def nested(depth: int) -> Any:
        return [nested(depth - 1)] if depth else 4

    def schedule(**changes: Any) -> Any:
        return lambda values: values["noise_schedule"].update(changes)

    return {
        "huge-channels": architecture(block_out_channels=[1 << 20]),
        "overflowing-channels": architecture(block_out_channels=[1 << 62]),
        "overflowing-product": architecture(block_out_channels=[(1 << 31) - 1]),
        "zero-channels": architecture(block_out_channels=[0]),
        "negative-channels": architecture(block_out_channels=[-4]),
        "zero-inputs": architecture(in_channels=0),
        "infinite-epsilon": architecture(norm_eps=float("inf")),
        "negative-epsilon": architecture(norm_eps=-1),
        "text-scale": architecture(mid_block_scale_factor="x"),
        "huge-padding": architecture(downsample_padding=10**9),
        "huge-shift": architecture(freq_shift=10**400),
        "deep-list": architecture(block_out_channels=nested(500)),
        "escapes": architecture(**{"\x1b]0;title\x07\u202e": 1}),
        "huge-null-class": lambda values: values.update(null_class=10**400),
        "null-class-outside": lambda values: (
            values["architecture"]["config"].update(num_class_embeds=4),
            values.update(null_class=4),
        )[:0],
        "truth-for-version": lambda values: values.update(format_version=True),
        "truth-for-bins": lambda values: values.update(timestep_bins=[False, True]),
        "text-for-timesteps": schedule(num_train_timesteps="1000"),
        "huge-image": architecture(sample_size=1 << 40),
        "zero-image": architecture(sample_size=0),
        "large-image": architecture(sample_size=1 << 14),
        "no-image": architecture(sample_size=None),
        "sides-of-image": architecture(sample_size=[8, 8]),
        "many-layers": architecture(layers_per_block=10**9),
        "many-layers-deep": architecture(transformer_layers_per_block=[[10**9]]),
        "many-blocks": architecture(
            block_out_channels=[4] * 5000,
            down_block_types=["DownBlock2D"] * 5000,
            up_block_types=["UpBlock2D"] * 5000,
        ),
        "huge-classes": lambda values: (
            values["architecture"]["config"].update(num_class_embeds=10**9),
            values.update(null_class=0),
        )[:0],
        "negative-classes": lambda values: (
            values["architecture"]["config"].update(num_class_embeds=-1),
            values.update(null_class=0),
        )[:0],
        "nan": lambda values: json.dumps(values).replace('"num_train_timesteps": 1000', '"beta_end": NaN'),
        "infinite-beta": schedule(beta_end=float("inf")),
        "no-signal": schedule(beta_end=0.99999),
        "infinite-clip": schedule(clip_sample_range=float("inf")),
        "clip-past-float": schedule(clip_sample_range=1e300),
        "options-of-float": lambda values: values.update(options={"a": {"b": [1]}}),
        "null-class-of-none": lambda values: values.update(null_class=0),
        "many-timesteps": schedule(num_train_timesteps=10**15),
        "many-bins": lambda values: values.update(timestep_bins=list(range(5000))),
        "negative-bin": lambda values: values.update(timestep_bins=[-(10**30), 5]),
        "name-twice": lambda values: json.dumps(values).replace("{", '{"method": "bidm", ', 1),
        "deep": lambda values: "[" * 10_000,
        "many-digits": lambda values: json.dumps(values).replace("1000", "9" * 5000, 1),
        "not-utf-8": lambda values: '{"\\ud800": 1}',
        "tap-outside": lambda values: values.update(taps=["../../../etc"], timestep_bins=[0]),
    }


def tensors(data: bytes) -> dict[str, bytes]:
    """Changes of model.safetensors."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    first, second = sorted(
        (name for name in header if name != "__metadata__"), key=lambda n: header[n]["data_offsets"]
    )[:2]

    def with_header(change: Any, more: bytes = b"") -> bytes:
        changed = copy.deepcopy(header)
        result = change(changed)
        text = (result if isinstance(result, str) else json.dumps(changed)).encode()
        return struct.pack("<Q", len(text)) + text + body + more

    def entry(**changes: Any) -> bytes:
        return with_header(lambda values: values[first].update(changes))

    begin, end = header[first]["data_offsets"]

    def poisoned(bits: int) -> bytes:
        place = 8 + size + begin
        return data[:place] + struct.pack("<H", bits) + data[place + 2 :]

    text = json.dumps(header)
    return {
        "length-beyond-end": struct.pack("<Q", 1 << 40) + data[8:],
        "length-wraps": struct.pack("<Q", 2**64 - 8) + data[8:],
        "no-header": b"\x01\x02",
        "empty": b"",
        "truncated": data[:-3],
        "longer": data + b"\0",
        "offset-beyond-end": entry(data_offsets=[1 << 40, (1 << 40) + end - begin]),
        "offset-negative": entry(data_offsets=[-8, end - begin - 8]),
        "offset-reversed": entry(data_offsets=[end, begin]),
        "offset-fraction": entry(data_offsets=[0.0, end - begin]),
        "overlap": with_header(
            lambda values: values[second].update(data_offsets=[begin, end], shape=header[first]["shape"])
        ),
        "shape-wraps": entry(shape=[1 << 33, 1 << 33]),
        "shape-huge": entry(shape=[1 << 40]),
        "shape-zero": entry(shape=[0], data_offsets=[begin, begin]),
        "shape-negative": entry(shape=[-1, -1]),
        "many-axes": entry(shape=[1] * 5000),
        "dtype-unknown": entry(dtype="F2"),
        "dtype-other": entry(dtype="U16"),
        "name-twice": with_header(
            lambda values: text[:-1] + "," + json.dumps(first) + ":" + json.dumps(header[first]) + "}"
        ),
        "name-outside": with_header(lambda values: values.update({"../../etc/passwd": values.pop(first)})),
        "deep-header": struct.pack("<Q", 10_000) + b"[" * 5000,
        "nan-weight": poisoned(0x7E00),
        "infinite-scale": poisoned(0x7C00),
    }
