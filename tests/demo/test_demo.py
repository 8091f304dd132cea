"""The whole demo on the built-in 1-bit model."""

import pytest

from edgedm.demo import MODELS, demo, render


@pytest.mark.slow
def test_the_demo_ends_with_a_page_and_parity(tmp_path, capsys) -> None:
    outcome = demo(tmp_path / "out", MODELS[:1])
    assert outcome.ok
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<img ") == 30  # three rows of ten digits
    assert 'src="data:image/png;base64,' in page and "http" not in page
    assert outcome.figures["W1A1.ratio.onnxruntime_fp32.t1"] > 1
    assert outcome.figures["W1A1.bytes.weights"] < outcome.figures["W1A1.bytes.full_onnx"] / 5
    render(outcome)
    assert "holds" in capsys.readouterr().out
