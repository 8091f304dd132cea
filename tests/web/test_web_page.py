"""The page as a file: what is refused, what it holds, and that its colours can be read."""

import re
from importlib import resources

import pytest
import tiny_latent
import tiny_model
from click.testing import CliRunner

from edgedm.bundle import load
from edgedm.cli import main
from edgedm.errors import UnsupportedError
from edgedm.runtime.opening import require_native
from edgedm.runtime.remote import run_on
from edgedm.web import page, web

READABLE = 4.5  # contrast of text and background that WCAG 2 asks for at level AA


def test_a_bundle_of_another_machine_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(UnsupportedError, match=r"no browser runs: compile it with --target wasm32\+simd128"):
        web(tiny_model.folder() / "model.bundle", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_a_model_that_needs_a_text_is_refused(tmp_path, monkeypatch):
    bundle = tiny_latent.folder() / "model.bundle"
    monkeypatch.setattr(page, "TARGET", load(bundle).manifest.target.name)
    with pytest.raises(UnsupportedError, match="text condition"):
        web(bundle, tmp_path / "page.html")


@pytest.mark.slow
def test_the_command_writes_one_file_that_needs_no_other(wasm_bundle, tmp_path):
    path = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["web", str(wasm_bundle), "-o", str(path), "--title", "A <b> & c"])
    assert done.exit_code == 0, done.output
    text = path.read_text()
    assert "<title>A &lt;b&gt; &amp; c</title>" in text
    assert not re.search(r"@\w+@", text)
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", markup)
    assert set(links) == {"data:,"}


@pytest.mark.slow
def test_what_needs_a_machine_points_to_the_page(wasm_bundle):
    with pytest.raises(UnsupportedError, match="runs in browsers: see `edgedm web`"):
        run_on("ssh", "nowhere.invalid", wasm_bundle)
    with pytest.raises(UnsupportedError, match="time it there, with `edgedm web"):
        require_native(load(wasm_bundle))


def test_json_cannot_end_the_script_element():
    assert "</" not in page._json({"name": "</script><script>alert(1)"})


def colours(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#\w{6});", css))


def luminance(colour: str) -> float:
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("text", "paper"),
    [
        ("ink", "paper"),
        ("ink", "card"),
        ("soft", "paper"),
        ("on-accent", "accent"),
        ("bad", "bad-paper"),
    ],
)
def test_text_can_be_read_on_its_background(scheme, text, paper):
    css = resources.files("edgedm.web").joinpath("page/page.css").read_text()
    light, _, dark = css.partition("prefers-color-scheme: dark")
    found = colours(light if scheme == "light" else dark)
    brighter, darker = sorted((luminance(found[text]), luminance(found[paper])), reverse=True)
    assert (brighter + 0.05) / (darker + 0.05) >= READABLE
