"""A run as `verify` leaves it, with everything that a report can show: failures, gates, images, moments of layers."""

import numpy as np
import pytest

from edgedm.outcome import Outcome
from edgedm.verify.evidence import Evidence
from edgedm.verify.report import Level, Row, outcome_of

HOSTILE = '<script>alert("x")</script> | `a` *b* [c](d) & \\'
LAYERS, STEPS = 50, 20


def _layer(number: int, rng: np.random.Generator) -> Row:
    moments = tuple(
        {
            "step": float(step),
            "snr_db": float(rng.uniform(95, 150)),
            "codes": 4096.0,
            "flips": float(rng.random() < 0.05),
        }
        for step in range(number % 3, STEPS, 3)
    )
    name = f"QuantConv down_blocks.{number // 10}.resnets.{number % 10}.conv1"
    return Row(
        name, number != 7, {"n": 289.0, "use of bound": 0.31, "flips": 1.0}, HOSTILE if number == 7 else "", moments
    )


@pytest.fixture(scope="session")
def run() -> tuple[Outcome, Evidence]:
    rng = np.random.default_rng(0)
    op = Level("op", "integers equal", tuple(Row(f"BinaryConv layer{n}", True, {"trials": 3.0}) for n in range(12)))
    layer = Level("layer", "decisions without exception", tuple(_layer(n, rng) for n in range(LAYERS)), seconds=2.5)
    step = Level(
        "step",
        "error at most 2 times torch float32's",
        tuple(
            Row(
                f"eps, step {n}",
                True,
                {"error": 1e-6},
                moments=({"step": float(n), "snr_db": 118.0 + n % 3, "torch32_snr_db": 121.0 - n % 2},),
            )
            for n in range(STEPS)
        ),
    )
    spread = Level(
        "distribution", "no shift", (Row("Frechet distance", False, {"seen": float("inf")}, "off"),), required=False
    )
    gates = [
        Row("step.min_snr_db", True, {"allowed": 30.0, "actual": 118.0}),
        Row("speed.max_step_ms", False, {"allowed": 1.0}, "expected at most 1, but nothing measured it"),
    ]
    outcome = outcome_of(
        [op, layer, step, spread], "out/model.bundle", f"zoo:{HOSTILE}", gates, lambda *_: "pass MergeScales"
    )
    outcome.details["schedule"] = {"steps": STEPS, "sampler": "ddim"}
    evidence = Evidence(
        facts={"weights": "sha256 " + "0123456789abcdef" * 4, "versions": "torch 2.13, onnx 1.23"},
        sizes={"bytes.bundle": 812345.0, "bytes.shipped": 300123.0, "bytes.float32": 5e6, "size.shipped_ratio": 16.7},
        speed={"edgedm": 1.4, "torch": 14.2},
    )
    for image in range(4):
        way = [rng.uniform(-1, 1, (1, 16, 16)).astype(np.float32) for _ in range(STEPS + 1)]
        ours = [frame + np.float32(1e-3 * (image > 0)) for frame in way]
        evidence.add(image, way, ours)
    return outcome, evidence
