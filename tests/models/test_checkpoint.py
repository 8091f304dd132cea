"""Checkpoints survive a round trip, and damaged or foreign ones are refused by name."""

import json

import pytest
import torch
from architectures import SMALL_DIT
from safetensors.torch import load_file, save_file
from small_checkpoints import small

from edgedm.errors import InvalidModelError
from edgedm.models import CheckpointConfig, load, locate, save, zoo
from edgedm.models.config import Architecture


@pytest.fixture
def folder(tmp_path):
    save(small("bidm"), tmp_path / "ckpt")
    return tmp_path / "ckpt"


@pytest.mark.parametrize("method", ["fp32", "binarydm", "bidm", "xnor"])
def test_a_checkpoint_comes_back_as_it_was(tmp_path, method):
    checkpoint = small(method)
    save(checkpoint, tmp_path / "ckpt")
    loaded = load(tmp_path / "ckpt")
    assert loaded.config == checkpoint.config
    ours, theirs = loaded.module.state_dict(), checkpoint.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_floats_are_stored_in_half_precision_and_weights_as_bits(folder):
    tensors = load_file(folder / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float16, torch.uint8, torch.int64}
    bits = [name for name, value in tensors.items() if value.dtype == torch.uint8]
    assert "unet.mid_block.resnets.0.conv1.bits" in bits
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_a_model_folder_of_another_library_is_never_replaced(tmp_path):
    """It has files of the same names."""
    theirs = tmp_path / "bert"
    theirs.mkdir()
    save_file({"embeddings.weight": torch.zeros(2)}, theirs / "model.safetensors")
    (theirs / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "transformers_version": "4.57.0"}))
    with pytest.raises(InvalidModelError, match=r"bert: holds other files \(it has no config\.json .* of edgedm"):
        save(small("xnor"), theirs)
    assert load_file(theirs / "model.safetensors").keys() == {"embeddings.weight"}


def test_files_beside_a_checkpoint_are_never_replaced(folder):
    (folder / "README.md").write_text("mine")
    with pytest.raises(InvalidModelError, match=r"ckpt: holds other files \(it has README\.md beside a checkpoint\)"):
        save(small("xnor"), folder)
    (folder / "README.md").unlink()
    save(small("xnor"), folder)
    assert load(folder).config.method == "xnor"


def change_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("embeds", [{"num_embeds_ada_norm": 1000}, {}])
def test_a_dit_has_a_class_more_for_none_whether_its_number_is_given_or_the_constructors(embeds):
    def described(null_class):
        arguments = {name: value for name, value in SMALL_DIT.items() if name != "num_embeds_ada_norm"}
        architecture = Architecture(class_name="DiTTransformer2DModel", config={**arguments, **embeds})
        return CheckpointConfig(
            architecture=architecture, method="fp32", roles={}, noise_schedule={}, null_class=null_class
        )

    assert described(1000).null_class == 1000
    with pytest.raises(ValueError, match=r"null_class: expected 0\.\.1000, got 1001"):
        described(1001)


CONFIG_ATTACKS = {
    "version": ({"format_version": 2}, "format_version"),
    "a mix with no tap": ({"mixes": {"up_blocks.1.resnets.1": "mid_block"}}, "mid_block"),
    "a mix of no module": ({"mixes": {"up_blocks.9": "up_blocks.0.upsamplers.0"}}, r"up_blocks\.9"),
    "no null class": ({"null_class": None}, "null_class"),
    "no method": ({"method": "magic"}, "method"),
    "unknown key": ({"colour": "red"}, "colour"),
    "unknown tap": ({"taps": ["up_blocks.9.resnets.0"]}, "up_blocks.9.resnets.0"),
    "bins that descend": ({"timestep_bins": [5, 3]}, "ascend"),
    "another class": ({"architecture": {"class_name": "os.system", "config": {}}}, "class_name"),
    "a strange argument": ({"architecture": {"class_name": "UNet2DModel", "config": {"x": 1}}}, "architecture"),
}


@pytest.mark.parametrize(("changes", "named"), CONFIG_ATTACKS.values(), ids=CONFIG_ATTACKS)
def test_a_foreign_config_is_refused_by_file_and_key(folder, changes, named):
    change_config(folder, **changes)
    with pytest.raises(InvalidModelError, match=named):
        load(folder)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (17, r"images of 17 x 17 \(sample_size\) do not pass: .* expected sides that halve at every downsampler"),
        (4096, r"images of 4096 x 4096 \(sample_size\) are too large: a tensor of .* bytes, more than"),
        (None, r"sample_size: expected one number of 1\.\.16384 \(images are square\), got None"),
        ([16, 16], r"sample_size: expected one number .*, got \[16, 16\]"),
        (True, r"sample_size: expected one number .*, got True"),
    ],
)
def test_images_that_the_network_cannot_draw_are_refused_by_file(folder, size, reason):
    architecture = json.loads((folder / "config.json").read_text())["architecture"]
    change_config(folder, architecture={**architecture, "config": {**architecture["config"], "sample_size": size}})
    with pytest.raises(InvalidModelError, match=r"ckpt/config\.json: architecture\.config[.:].*" + reason):
        load(folder)


def test_channels_that_a_config_leaves_out_are_those_of_the_constructor(folder):
    config = load(folder).config
    arguments = {name: value for name, value in config.architecture.config.items() if name != "in_channels"}
    architecture = config.architecture.model_copy(update={"config": arguments})
    assert config.model_copy(update={"architecture": architecture}).image_shape == (3, 16, 16)


@pytest.mark.parametrize(
    "changes", [{"options": {"colour": "red"}}, {"options": {"filter": "none at all"}}, {"roles": {"res_conv": "W1A4"}}]
)
def test_options_and_bits_that_the_method_lacks_are_refused_by_file(folder, changes):
    values = json.loads((folder / "config.json").read_text())
    change_config(folder, **{key: {**values[key], **more} for key, more in changes.items()})
    with pytest.raises(InvalidModelError, match=r"ckpt/config\.json: (option|layer)"):
        load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InvalidModelError, match=r"config\.json"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 5_000, -1])
def test_a_truncated_file_is_refused(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InvalidModelError, match=r"model\.safetensors"):
        load(folder)


def drop(tensors):
    del tensors["unet.conv_in.weight"]


def add(tensors):
    tensors["extra"] = torch.zeros(1)


def reshape(tensors):
    tensors["unet.conv_in.weight"] = tensors["unet.conv_in.weight"].flatten().clone()


def retype(tensors):
    name = "unet.mid_block.resnets.0.conv1.bits"
    tensors[name] = tensors[name].to(torch.int32)


def poison(tensors):
    tensors["unet.conv_in.weight"][0, 0, 0, 0] = float("nan")


@pytest.mark.parametrize("attack", [drop, add, reshape, retype, poison])
def test_altered_tensors_are_refused_by_name(folder, attack):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    attack(tensors)
    save_file(tensors, path)
    with pytest.raises(InvalidModelError, match="extra" if attack is add else "conv_in.weight|conv1.bits"):
        load(folder)


def test_a_missing_folder_and_an_unknown_zoo_name_list_what_there_is(tmp_path):
    with pytest.raises(InvalidModelError, match="zoo:digits-fp32"):
        load(tmp_path / "nothing")
    with pytest.raises(InvalidModelError, match="zoo:digits-fp32"):
        locate("zoo:../../secrets")


def test_every_checkpoint_of_the_zoo_loads_and_the_zoo_stays_small():
    names = zoo()
    assert "zoo:digits-fp32" in names
    total = 0
    for name in names:
        load(name)
        total += (locate(name) / "model.safetensors").stat().st_size
    assert (locate("zoo:digits-fp32") / "model.safetensors").stat().st_size <= 8_000_000
    assert total <= 20_000_000
