"""Hostile gate files."""

from pathlib import Path

GATES = {
    "unknown-table": "[surprise]\nx = 1\n",
    "unknown-key": "[size]\nmax_everything = 1\n",
    "name-twice": "[size]\nmax_bundle_bytes = 1\nmax_bundle_bytes = 2\n",
    "nan": "[speed]\nmax_step_ms = nan\n",
    "infinite": "[speed]\nmax_step_ms = inf\n",
    "negative": "[speed]\nmax_step_ms = -1.0\n",
    "text": '[speed]\nmax_step_ms = "fast"\n',
    "deep": "x = " + "[" * 10_000,
    "deep-tables": "[" + ".".join("a" * 5000) + "]\n",
    "dotted-key": ".".join("a" * 30_000) + " = 1\n",
    "dotted-behind-quotes": "'#'." + ".".join("a" * 30_000) + " = 1\n",
    "escapes": '"\x1b[2J" = 1\n'.replace("\x1b", "\\u001b"),
    "empty-key": '"" = 1\n',
    "number-is-true": "[layer]\nmax_flip_share = true\n",
    "number-is-text": '[op]\nmax_use_of_bound = "0.5"\n',
    "truth-is-text": '[op]\nrequired = "no"\n',
    "many-digits": "[size]\nmax_bundle_bytes = " + "9" * 5000 + "\n",
    "not-toml": "[",
    "zero-steps": "steps = 0\n",
    "huge-steps": "steps = 1099511627776\n",
    "huge-images": "images = 1099511627776\n",
    "zero-samples": "[distribution]\nsamples = 0\n",
    "huge-samples": "[distribution]\nsamples = 1099511627776\n",
    "features-absolute": 'features = "/etc/passwd"\n',
    "features-zero-byte": 'features = "a\\u0000b"\n',
    "features-parent": 'features = "../../../etc/passwd"\n',
    "features-parent-inside": 'features = "gate/../../features.onnx"\n',
}


def write(files: Path) -> None:
    """Write `gate`."""
    (files / "gate").mkdir()
    for name, text in GATES.items():
        (files / "gate" / f"{name}.toml").write_text(text)
    (files / "gate/not-utf-8.toml").write_bytes(b"x = '\xff'\n")
