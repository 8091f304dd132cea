"""A file of this repository that a page, a comment or a test names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "edgedm", "examples", "fuzz", "passes", "scripts", "targets", "tests", ".ci")
KINDS = {".py", ".md", ".c", ".h", ".j2", ".java", ".js", ".sh", ".txt", ".toml", ".yml", ".yaml", ".html"}
_NAMED = re.compile(r"(?<![\w./-])(?:tests|scripts|docs)/[\w./*-]*\w")


def texts() -> list[Path]:
    below = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return [path for path in (*ROOT.glob("*"), *below) if path.suffix in KINDS and path.is_file()]


def missing(text: str) -> list[str]:
    """What `text` names and nobody has; a star stands for anything."""
    return [name for name in _NAMED.findall(text) if not any(ROOT.glob(name))]


def test_every_path_that_a_text_names_is_there():
    found = {path.relative_to(ROOT).as_posix(): missing(path.read_text(errors="replace")) for path in texts()}
    assert len(found) > 500
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("see `{}/test_named_paths.py`, {}/*.py and {}/android/.", []),
        ("`{}/test_gone.py` holds it; {}/nowhere/*.c.", ["{}/test_gone.py", "{}/nowhere/*.c"]),
        ("an app's own my/{}/test_gone.py", []),
    ],
)
def test_a_path_that_is_gone_is_found(text, names):
    assert missing(text.replace("{}", "tests")) == [name.replace("{}", "tests") for name in names]
