"""schedule.c, sampler.c and noise.c against numpy, bit for bit, for every kind of noise schedule."""

import ctypes as c

import jinja2
import numpy as np
import pytest

from edgedm.diffusion import NoiseSchedule, add_noise, advance, estimate, guide, normals, step_coefficients
from edgedm.diffusion.noise_schedule import SAMPLERS
from edgedm.diffusion.normal_table import ROWS
from edgedm.diffusion.philox import normal_from_bits
from edgedm.diffusion.steps import coefficient_table
from edgedm.errors import UnsupportedError
from edgedm.lower import toolchain
from edgedm.lower.codegen import TEMPLATES

SCHEDULES = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1},
    {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace", "clip_sample": False, "set_alpha_to_one": False},
    {"prediction_type": "v_prediction", "clip_sample_range": 2.0, "timestep_spacing": "trailing"},
    {"prediction_type": "sample", "num_train_timesteps": 37, "variance_type": "fixed_large"},
    {
        "solver_type": "heun",
        "lower_order_final": False,
        "final_sigmas_type": "sigma_min",
        "timestep_spacing": "linspace",
    },
    {"solver_order": 1, "euler_at_final": True, "prediction_type": "v_prediction"},
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "euler_at_final": True},
    {  # the last of 37 steps ends at the noise that it begins with
        "solver_type": "heun",
        "num_train_timesteps": 37,
        "final_sigmas_type": "sigma_min",
        "timestep_spacing": "trailing",
    },
]
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")


class CSchedule(c.Structure):
    _fields_ = (
        ("alphas", c.POINTER(c.c_float)),
        *((name, c.c_int32) for name in ("train", "offset", "first", "last", "solver")),
        ("clip", c.c_float),
        *((name, c.c_uint8) for name in ("prediction", "spacing", "to_one", "large")),
        *((name, c.c_uint8) for name in ("order", "heun", "lower_final", "euler_final", "end_at_zero")),
    )


class CRun(c.Structure):
    _fields_ = (("steps", c.c_int), ("sampler", c.c_int), ("eta", c.c_double), ("timesteps", c.c_void_p))


class Coefficients(c.Structure):
    _fields_ = tuple((f"value{i}", c.c_float) for i in range(12))


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> c.CDLL:
    """The three C files alone, as every bundle has them."""
    folder = tmp_path_factory.mktemp("schedule")
    for name in ("edgedm.h", "runtime.h", "kernel_abi.h", "schedule.c", "sampler.c"):
        (folder / name).write_text((TEMPLATES / name).read_text())
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES))
    rows = [[f"{value!r}F" for value in row] for row in ROWS]
    (folder / "noise.c").write_text(environment.get_template("noise.c.j2").render(rows=rows))
    (folder / "edgedm_names.h").write_text("")
    arguments = ["-target", toolchain.LINUX_X86_64, *toolchain.COMPILE, "-fvisibility=default", "-shared", "-I", "."]
    toolchain.zig_cc([*arguments, "schedule.c", "sampler.c", "noise.c", "-o", "bits.so"], folder)
    return c.CDLL(str(folder / "bits.so"))


def _c_schedule(schedule: NoiseSchedule) -> CSchedule:
    alphas = schedule.alphas_cumprod()
    return CSchedule(
        (c.c_float * alphas.size)(*alphas),
        schedule.num_train_timesteps,
        schedule.steps_offset,
        0,
        schedule.num_train_timesteps - 1,
        schedule.solver_timesteps(),
        schedule.clip_sample_range if schedule.clip_sample else 0.0,
        PREDICTIONS.index(schedule.prediction_type),
        SPACINGS.index(schedule.timestep_spacing),
        schedule.set_alpha_to_one,
        schedule.variance_type == "fixed_large",
        schedule.solver_order,
        schedule.solver_type == "heun",
        schedule.lower_order_final,
        schedule.euler_at_final,
        schedule.final_sigmas_type == "zero",
    )


def _pointer(array: np.ndarray) -> c.c_void_p:
    return c.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("train", "offset"), [(1000, 0), (1000, 1), (37, 3)])
def test_timesteps_are_those_of_numpy(library, spacing, train, offset, sampler):
    schedule = NoiseSchedule(timestep_spacing=spacing, num_train_timesteps=train, steps_offset=offset)
    described = _c_schedule(schedule)
    for steps in range(1, train + 1):
        got = (c.c_int64 * steps)()
        library.edm_choose_timesteps(c.byref(described), SAMPLERS.index(sampler), steps, got)
        try:
            want = schedule.timesteps(steps, sampler).tolist()
        except UnsupportedError:
            assert len(set(got)) < steps or max(got) >= train  # which edm_prepare refuses
        else:
            assert list(got) == want


@pytest.mark.parametrize("config", SCHEDULES)
@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.3), ("ddpm", 0.0), ("dpm-solver++", 0.0)])
@pytest.mark.parametrize("first", [0, 3])
def test_coefficients_have_the_same_bits(library, config, sampler, eta, first):
    schedule = NoiseSchedule.from_config(config)
    for steps in (1, 7, 37 if schedule.timestep_spacing == "trailing" else 30):
        timesteps = schedule.timesteps(steps, sampler)
        rows = (Coefficients * steps)()
        run = CRun(steps, SAMPLERS.index(sampler), eta, None)
        described = _c_schedule(schedule)
        for step, row in enumerate(rows):
            library.edm_step_coefficients(
                c.byref(described), c.byref(run), _pointer(timesteps), first, step, c.byref(row)
            )
        want = coefficient_table(step_coefficients(schedule, steps, sampler, eta, first))
        assert bytes(rows) == want.tobytes()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("config", SCHEDULES)
def test_a_step_has_the_same_bits(library, config, sampler):
    schedule = NoiseSchedule.from_config(config)
    rng = np.random.default_rng(0)
    x, output, noise, before = rng.standard_normal((4, 1000)).astype(np.float32)
    output[:3] = [0.0, -0.0, 1e-40]
    row, clip = (
        step_coefficients(schedule, 9, sampler, eta=0.5 if sampler == "ddim" else 0.0)[4],
        schedule.clip(sampler),
    )
    fresh = noise if row.to_noise else None
    want, want_x0 = advance(row, clip, x, output, fresh, before), estimate(row, clip, x, output)
    got, got_x0 = x.copy(), before.copy()
    c_row = Coefficients(*coefficient_table([row])[0].tolist())
    arrays = (_pointer(output), None if fresh is None else _pointer(fresh))
    library.edm_advance(
        c.byref(c_row), c.c_float(clip or 0.0), *arrays, c.c_uint64(x.size), _pointer(got), _pointer(got_x0)
    )
    assert got.tobytes() == want.tobytes()
    assert got_x0.tobytes() == want_x0.tobytes()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_under_noise_has_the_same_bits(library, sampler):
    image, noise = np.random.default_rng(1).standard_normal((2, 999)).astype(np.float32)
    schedule = NoiseSchedule()
    for timestep in (0, 500, 999):
        got = noise.copy()
        described = _c_schedule(schedule)
        begins = c.byref(described), SAMPLERS.index(sampler), c.c_int64(timestep)
        library.edm_add_noise(*begins, _pointer(image), c.c_uint64(image.size), _pointer(got))
        assert got.tobytes() == add_noise(schedule, timestep, image, noise, sampler).tobytes()


def test_guidance_has_the_same_bits(library):
    one, two = np.random.default_rng(1).standard_normal((2, 999)).astype(np.float32)
    got = np.empty_like(one)
    library.edm_guide(_pointer(one), _pointer(two), c.c_float(1.7), c.c_uint64(one.size), _pointer(got))
    assert got.tobytes() == guide(one, two, 1.7).tobytes()


@pytest.mark.parametrize(("seed", "image", "draw", "count"), [(0, 0, 0, 257), (2**63 + 5, 7, 3, 4), (99, 2**31, 50, 1)])
def test_noise_has_the_same_bits(library, seed, image, draw, count):
    got = np.empty(count, np.float32)
    library.edm_normals(c.c_uint64(seed), c.c_uint32(image), c.c_uint32(draw), c.c_uint64(count), _pointer(got))
    assert got.tobytes() == normals(seed, image, draw, count).tobytes()


def test_a_million_normals_have_the_same_bits(library):
    count = 1_000_000
    got = np.empty(count, np.float32)
    library.edm_normals(c.c_uint64(11), c.c_uint32(0), c.c_uint32(0), c.c_uint64(count), _pointer(got))
    assert got.tobytes() == normals(11, 0, 0, count).tobytes()
    assert np.isfinite(got).all()
    assert np.isfinite(normal_from_bits(np.array([0, 1, 0xFFFFFFFF, 0xFFFFFFFE], np.uint32))).all()
