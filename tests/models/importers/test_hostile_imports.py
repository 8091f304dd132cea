"""Files that almost have a layout are refused with the name of the tensor, as the file has it."""

import ddim_reference
import pytest
import torch
from authors_files import LDM, lightning
from click.testing import CliRunner
from openai_reference import Arch, float_state, modules
from test_import_bidm import ARCH, bidm_state

from edgedm.cli import main
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import load
from edgedm.models.importers import LAYOUTS, import_checkpoint

OPTIONS = {"head_channels": 16, "image_size": 8, "weights": "raw"}
CONV = LDM + "input_blocks.1.0.in_layers.2.weight"


def cut(tensors, name):
    tensors[name] = tensors[name][..., :-1].clone()


def poison(tensors, name):
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = float("nan")


def make_infinite(tensors, name):
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = float("-inf")


def drop(tensors, name):
    del tensors[name]


def retype(tensors, name):
    tensors[name] = tensors[name].to(torch.int32)


def to_bytes(tensors, name):
    tensors[name] = tensors[name].to(torch.uint8)


def empty(tensors, name):
    tensors[name] = torch.zeros(0)


def repeat_one_number(tensors, name):
    tensors[name] = torch.ones(1).expand(tensors[name].shape)


def make_sparse(tensors, name):
    tensors[name] = tensors[name].to_sparse()


ATTACKS = [cut, poison, make_infinite, drop, retype, to_bytes, empty, repeat_one_number, make_sparse]
NAMES = [
    CONV,
    LDM + "input_blocks.1.0.in_layers.0.weight",
    LDM + "input_blocks.3.1.qkv.weight",
    LDM + "middle_block.1.proj_out.bias",
    LDM + "time_embed.0.bias",
    LDM + "out.2.weight",
]


def write(tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", NAMES)
def test_an_altered_tensor_is_refused_by_name(tmp_path, attack, name):
    content = lightning(float_state(modules(Arch())))
    attack(content["state_dict"], name)
    with pytest.raises(InvalidModelError, match=name.rpartition(".")[0].removeprefix(LDM).replace(".", r"\.")):
        import_checkpoint(write(tmp_path, content), "ldm", **OPTIONS)


BIDM_NAMES = ["channel_threshold", "fliter_k.weight", "fliter_k.bias", "shortcut_scale", "weight"]


@pytest.mark.parametrize("attack", [cut, poison, drop, retype, empty])
@pytest.mark.parametrize("suffix", BIDM_NAMES)
def test_an_altered_tensor_of_bidm_is_refused_by_name(tmp_path, attack, suffix):
    content = lightning(bidm_state(ARCH))
    name = f"{LDM}middle_block.0.out_layers.3.{suffix}"
    attack(content["state_dict"], name)
    with pytest.raises(InvalidModelError, match=name.replace(".", r"\.")):
        import_checkpoint(write(tmp_path, content), "bidm-ldm", connections=3, **OPTIONS)


@pytest.mark.parametrize("name", [LDM + "surprise", LDM + "out.2.scale", "surprise.weight", LDM + "out.7.weight"])
def test_an_extra_tensor_is_refused_by_name(tmp_path, name):
    content = lightning(float_state(modules(Arch())), **{name: torch.ones(3)})
    with pytest.raises(InvalidModelError, match=name.replace(".", r"\.")):
        import_checkpoint(write(tmp_path, content), "ldm", **OPTIONS)


def test_a_gap_in_the_blocks_and_a_block_too_many_are_refused(tmp_path):
    state = float_state(modules(Arch()))
    gap = {name: value for name, value in state.items() if not name.startswith("input_blocks.2.")}
    with pytest.raises(InvalidModelError, match=r"input_blocks\.2"):
        import_checkpoint(write(tmp_path, lightning(gap)), "ldm", **OPTIONS)
    more = state | {f"input_blocks.4.{name[15:]}": v for name, v in state.items() if name.startswith("input_blocks.3.")}
    with pytest.raises(InvalidModelError, match="5 input_blocks"):
        import_checkpoint(write(tmp_path, lightning(more)), "ldm", **OPTIONS)


def test_a_spatial_transformer_is_refused_by_name(tmp_path):
    extra = {LDM + "input_blocks.3.1.transformer_blocks.0.attn1.to_q.weight": torch.ones(2, 2)}
    with pytest.raises(UnsupportedError, match=r"input_blocks\.3\.1\.transformer_blocks"):
        import_checkpoint(write(tmp_path, lightning(float_state(modules(Arch())), **extra)), "ldm", **OPTIONS)


HUGE = {
    "input_blocks.0.0.weight": torch.ones(1).expand(32, 10**8, 3, 3),  # defines in_channels, so it fits itself
    "input_blocks.3.1.norm.weight": torch.ones(1).expand(10**10),  # the rows of qkv are counted by it
    "input_blocks.3.1.qkv.weight": torch.ones(1).expand(10**10, 32, 1),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_few_stored_numbers_of_a_huge_shape_are_refused_before_anything_is_allocated(tmp_path, name):
    content = lightning(float_state(modules(Arch())))
    content["state_dict"][LDM + name] = HUGE[name]
    with pytest.raises(InvalidModelError, match=name.replace(".", r"\.") + ".*repeats fewer stored numbers"):
        import_checkpoint(write(tmp_path, content), "ldm", **OPTIONS)


def test_a_packed_weight_without_rows_defines_no_channels(tmp_path):
    content = lightning(float_state(modules(Arch())))
    content["state_dict"][LDM + "input_blocks.0.0.weight"] = torch.empty(0, 10**8, 3, 3, dtype=torch.uint8)
    with pytest.raises(InvalidModelError, match=r"input_blocks\.0\.0\.weight"):
        import_checkpoint(write(tmp_path, content), "ldm", **OPTIONS)


@pytest.mark.parametrize("shape", [(), (32,), (32, 3), (32, 0, 3, 3)])
def test_a_first_convolution_of_other_axes_is_refused_by_name(tmp_path, shape):
    content = lightning(float_state(modules(Arch())))
    content["state_dict"][LDM + "input_blocks.0.0.weight"] = torch.ones(shape)
    with pytest.raises(InvalidModelError, match=r"input_blocks\.0\.0\.weight.*4 axes"):
        import_checkpoint(write(tmp_path, content), "ldm", **OPTIONS)
    state = float_state(ddim_reference.modules(ddim_reference.Arch())) | {"conv_in.weight": torch.ones(shape)}
    with pytest.raises(InvalidModelError, match=r"conv_in\.weight.*4 axes"):
        import_checkpoint(write(tmp_path, [state]), "ddim", weights="raw", image_size=8)


def test_numbers_that_float16_cannot_hold_are_refused_when_written(tmp_path):
    content = lightning(float_state(modules(Arch())))
    content["state_dict"][CONV].view(-1)[0] = 65520.0
    path = write(tmp_path, content)
    assert import_checkpoint(path, "ldm", **OPTIONS).outcome.ok
    with pytest.raises(InvalidModelError, match=r"down_blocks\.0\.resnets\.0\.conv1\.weight.*65504"):
        import_checkpoint(path, "ldm", tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_norm_of_a_billion_channels_allocates_nothing(tmp_path):
    content = lightning(float_state(modules(Arch())))
    name = LDM + "input_blocks.1.0.out_layers.0.weight"
    content["state_dict"][name] = torch.ones(1).expand(2_000_000)
    with pytest.raises((InvalidModelError, UnsupportedError), match=r"input_blocks|channel_mult"):
        import_checkpoint(write(tmp_path, content), "ldm", **OPTIONS)


@pytest.mark.parametrize("name", ["conv_in.weight", "up.0.block.1.norm2.bias", "mid.attn_1.q.weight"])
@pytest.mark.parametrize("attack", [cut, poison, drop, empty])
def test_an_altered_ddim_file_is_refused_by_name(tmp_path, attack, name):
    state = {f"module.{key}": v for key, v in float_state(ddim_reference.modules(ddim_reference.Arch())).items()}
    attack(state, f"module.{name}")
    with pytest.raises(InvalidModelError, match=name.rpartition(".")[0].replace(".", r"\.")):
        import_checkpoint(write(tmp_path, [state]), "ddim", weights="raw", image_size=8)


def test_a_ddim_list_without_an_average_and_a_plain_dict_say_what_to_do(tmp_path):
    state = float_state(ddim_reference.modules(ddim_reference.Arch()))
    for content in ([state, {}], state):
        with pytest.raises(InvalidModelError, match="weights=raw"):
            import_checkpoint(write(tmp_path, content), "ddim", image_size=8)


def test_unknown_layouts_and_options_are_refused_with_a_list():
    with pytest.raises(UnsupportedError, match="bidm-ldm"):
        import_checkpoint("x", "bidm")
    with pytest.raises(UnsupportedError, match="head_channels"):
        import_checkpoint("x", "ldm", colour="red")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_refuses_another_ones_file(tmp_path, name):
    path = write(tmp_path, {"state_dict": {"encoder.weight": torch.ones(3)}})
    with pytest.raises(InvalidModelError, match=r"encoder|state_dict"):
        beside = {"zero_points": str(path)} if "zero_points" in LAYOUTS[name].options.model_fields else {}
        import_checkpoint(path, name, weights="raw", **beside)


def test_the_verb_writes_a_checkpoint_and_refuses_with_exit_code_2(tmp_path):
    path = write(tmp_path, lightning(float_state(modules(Arch()))))
    call = ["import", str(path), "--layout", "ldm", "-o", str(tmp_path / "out")]
    chosen = [text for name, value in OPTIONS.items() for text in ("--option", f"{name}={value}")]
    done = CliRunner().invoke(main, [*call, *chosen])
    assert done.exit_code == 0, done.output
    assert load(tmp_path / "out").config.null_class is None
    for wrong in (["--option", "head_channels"], ["--option", "x=1"]):
        done = CliRunner().invoke(main, [*call, *wrong])
        assert done.exit_code == 2
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"mine")
    done = CliRunner().invoke(main, [*call[:-1], str(tmp_path / "photos"), *chosen])
    assert done.exit_code == 2 and "photos: holds other files" in done.output
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"mine"
    path.write_bytes(b"PK")
    assert CliRunner().invoke(main, [*call, *chosen]).exit_code == 2


def test_an_average_of_nothing_is_refused_and_a_missing_one_is_reported(tmp_path):
    state = float_state(modules(Arch()))
    options = OPTIONS | {"weights": "ema"}
    with pytest.raises(InvalidModelError, match=r"model_ema\.diffusion_modelsurprise"):
        import_checkpoint(write(tmp_path, lightning(state, state | {"surprise": torch.ones(1)})), "ldm", **options)
    fewer = {name: value for name, value in state.items() if name != "out.2.bias"}
    outcome = import_checkpoint(write(tmp_path, lightning(state, fewer)), "ldm", **options).outcome
    assert outcome.figures["ema.without_average"] == 1
    assert any(LDM + "out.2.bias" in note for note in outcome.details["notes"])


def test_a_table_of_timesteps_needs_a_schedule_of_a_thousand_and_a_hundred_rows(tmp_path):
    content = lightning(bidm_state(ARCH))
    content["state_dict"]["betas"] = torch.linspace(1e-4, 2e-2, 500)
    with pytest.raises(UnsupportedError, match=r"1000 timesteps.*500"):
        import_checkpoint(write(tmp_path, content), "bidm-ldm", connections=3, **OPTIONS)
    content = lightning(bidm_state(ARCH))
    table = LDM + "cache_coefficients"
    content["state_dict"][table] = content["state_dict"][table][:50].clone()
    with pytest.raises(InvalidModelError, match=r"cache_coefficients.*100"):
        import_checkpoint(write(tmp_path, content), "bidm-ldm", connections=3, **OPTIONS)


def test_assumed_betas_are_reported(tmp_path):
    content = lightning(float_state(modules(Arch())))
    assert not import_checkpoint(write(tmp_path, content), "ldm", **OPTIONS).outcome.details["notes"]
    del content["state_dict"]["betas"]
    notes = import_checkpoint(write(tmp_path, content), "ldm", beta_end=0.02, **OPTIONS).outcome.details["notes"]
    assert any("beta_start=0.0015" in note and "beta_end" not in note for note in notes)


def test_images_that_the_network_cannot_draw_are_refused_by_option(tmp_path):
    path = write(tmp_path, lightning(float_state(modules(Arch()))))
    with pytest.raises(
        UnsupportedError, match=r"x\.ckpt: .* images of 7 x 7 .* do not pass.*; name another image_size"
    ):
        import_checkpoint(path, "ldm", **{**OPTIONS, "image_size": 7})
