"""The whole demo on built-in models."""

import pytest

from edgedm.demo import demo, render
from edgedm.errors import UnsupportedError


@pytest.mark.slow
def test_the_demo_ends_with_a_page_and_parity(tmp_path, capsys) -> None:
    outcome = demo(tmp_path / "out")
    assert outcome.ok
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<img ") == 30  # three rows of ten digits
    assert 'src="data:image/png;base64,' in page and "http" not in page
    assert outcome.figures["digits-bidm-w1a1.ratio.onnxruntime_fp32.t1"] > 1
    assert outcome.figures["digits-bidm-w1a1.bytes.weights"] < outcome.figures["digits-bidm-w1a1.bytes.full_onnx"] / 5
    render(outcome)
    assert "holds" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("method", ["efficientdm", "dilatequant"])
def test_a_w4a4_model_runs_in_the_native_program(tmp_path, method) -> None:
    outcome = demo(tmp_path / "out", [method])
    assert outcome.ok
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<img ") == 30 and "W4A4 native" in page
    name = f"digits-{method}-w4a4"
    assert outcome.figures[f"{name}.ratio.onnxruntime_fp32.t1"] > 1
    assert outcome.figures[f"{name}.bytes.weights"] < outcome.figures[f"{name}.bytes.full_onnx"] / 6


def test_an_unknown_method_is_refused(tmp_path) -> None:
    with pytest.raises(UnsupportedError, match="efficientdm"):
        demo(tmp_path / "out", ["magic"])
    assert not (tmp_path / "out").exists()
