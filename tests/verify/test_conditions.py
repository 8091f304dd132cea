"""Labels stand for text conditions; a latent model's decoder is judged beside its steps."""

import numpy as np
import pytest

from edgedm.models import load
from edgedm.verify.conditions import TEXTS, text_condition, text_conditions
from edgedm.verify.decoder_rows import with_decoder
from edgedm.verify.report import Level
from edgedm.verify.torch_reference import TorchReference


@pytest.fixture(scope="module")
def reference() -> TorchReference:
    return TorchReference(load("preset:latent-text,method=binarydm,narrow=8"))


def test_every_label_is_another_condition_and_the_null_label_is_none() -> None:
    drawn = text_conditions(range(TEXTS + 1), TEXTS, (4, 6))
    assert drawn.shape == (TEXTS + 1, 4, 6) and not drawn[TEXTS].any()
    assert len(np.unique(drawn.reshape(TEXTS + 1, -1), axis=0)) == TEXTS + 1
    assert np.array_equal(drawn[2], text_condition(2, TEXTS, (4, 6)))


def test_the_reference_predicts_by_the_condition_of_the_label(reference: TorchReference) -> None:
    assert reference.null_class == TEXTS
    (moment,) = reference.visit([0, 1], [(0, 0), (0, 0)], 4, [0])
    assert moment.texts is not None and moment.texts.shape == (2, 8, 8)
    output, _ = reference.predict(32, moment)
    assert np.array_equal(moment.x[0], moment.x[1]) and not np.allclose(output[0], output[1], atol=1e-4)


class Decoder:
    """Torch's own decoder, `error` off."""

    def __init__(self, reference: TorchReference, error: float) -> None:
        self.reference, self.error = reference, error

    def decode(self, latent: np.ndarray) -> np.ndarray:
        return self.reference.decode(32, latent) * np.float32(1 + self.error)


@pytest.mark.parametrize(("error", "ok"), [(0.0, True), (1e-2, False), (float("nan"), False)])
def test_a_wrong_decoder_shows(reference: TorchReference, error: float, ok: bool) -> None:
    latents = np.random.default_rng(0).standard_normal((10, 3, 16, 16)).astype(np.float32)
    level = with_decoder(Level("step", "", ()), Decoder(reference, error), reference, latents)
    (row,) = level.rows
    assert row.name == "decoder" and row.ok == ok and level.ok == ok


def test_a_model_that_draws_images_has_no_such_row() -> None:
    plain = TorchReference(load("zoo:digits-bidm-w1a1"))
    assert with_decoder(Level("step", "", ()), Decoder(plain, 0), plain, np.zeros((1, 1, 16, 16))).rows == ()
