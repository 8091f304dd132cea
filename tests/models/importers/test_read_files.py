"""Only tensors and plain containers are read; everything else is refused, by the names of its classes."""

import contextlib
import dataclasses
import pickle
import zipfile

import pytest
import pytorch_lightning
import torch
from authors_files import call, inputs, lightning
from omegaconf import OmegaConf
from openai_reference import Arch, float_layer, float_state, forward, modules
from safetensors.torch import save_file

from edgedm.errors import InvalidModelError
from edgedm.models.importers import import_checkpoint
from edgedm.models.importers.reading import read

CLOSE = 2e-4  # as in test_import_float
OPTIONS = {"head_channels": 16, "image_size": 8, "weights": "raw"}


@dataclasses.dataclass
class UnetConfig:
    model_channels: int = 32


class Wrapper(torch.nn.Module):
    """latent-diffusion's DiffusionWrapper: LatentDiffusion.model.diffusion_model."""

    def __init__(self, state):
        super().__init__()
        self.diffusion_model = torch.nn.Module()
        for name, value in state.items():
            *path, leaf = name.split(".")
            owner = self.diffusion_model
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, torch.nn.Module())
                owner = getattr(owner, part)
            owner.register_parameter(leaf, torch.nn.Parameter(value.clone()))


class Diffusion(pytorch_lightning.LightningModule):
    """A LightningModule that keeps a configuration among its hyper-parameters, as the released ones do."""

    def __init__(self, unet_config=None, state=None):
        super().__init__()
        self.save_hyperparameters("unet_config")
        self.model = Wrapper(state)

    def training_step(self, batch, _index):
        return sum(parameter.sum() for parameter in self.parameters()) * 0.0 + batch[0].sum() * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.fixture(scope="module")
def state():
    return float_state(modules(Arch()))


def written_by_lightning(folder, state, unet_config):
    module = Diffusion(unet_config, state)
    trainer = pytorch_lightning.Trainer(
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        default_root_dir=folder,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(2, 1))))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_file_of_plain_content_loads(tmp_path, state):
    path = written_by_lightning(tmp_path, state, {"model_channels": 32})
    assert "pytorch-lightning_version" in read(path)
    checkpoint = import_checkpoint(path, "ldm", **OPTIONS).checkpoint
    x, t = inputs(Arch())
    expected = forward(state, Arch(), x, t, float_layer(state))
    torch.testing.assert_close(call(checkpoint, x, t)[0], expected, atol=CLOSE, rtol=0)


CONFIGURATIONS = {
    "a dataclass": (UnetConfig(), "test_read_files.UnetConfig"),
    "OmegaConf": (OmegaConf.create({"target": "openaimodel.UNetModel"}), "omegaconf.dictconfig.DictConfig"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("config", "named"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_lightning_file_with_configuration_objects_is_refused_by_their_names(tmp_path, state, config, named):
    path = written_by_lightning(tmp_path, state, config)
    with pytest.raises(InvalidModelError) as error:
        import_checkpoint(path, "ldm", **OPTIONS)
    message = str(error.value)
    assert named in message
    for said in ("weights_only=False", "torch.save", "last.tensors.pt", "state_dict"):
        assert said in message
    assert "add_safe_globals" not in message


@pytest.mark.filterwarnings("ignore")
def test_the_way_to_convert_that_the_refusal_shows_works(tmp_path, state, monkeypatch):
    path = written_by_lightning(tmp_path, state, UnetConfig())
    with pytest.raises(InvalidModelError) as error:
        read(path)
    lines = [line.strip() for line in str(error.value).splitlines() if line.startswith("    ")]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines))
    checkpoint = import_checkpoint(tmp_path / "last.tensors.pt", "ldm", **OPTIONS).checkpoint
    x, t = inputs(Arch())
    expected = forward(state, Arch(), x, t, float_layer(state))
    torch.testing.assert_close(call(checkpoint, x, t)[0], expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("archive", [True, False])
def test_tensors_with_attributes_are_refused_and_the_way_to_convert_them_works(tmp_path, monkeypatch, archive):
    tensor, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(3))
    tensor.scale = parameter.scale = 5
    torch.save({"a": tensor, "b": parameter}, tmp_path / "x.pt", _use_new_zipfile_serialization=archive)
    with pytest.raises(InvalidModelError, match=r"_rebuild_from_type_v2.*_rebuild_parameter_with_state") as error:
        read(tmp_path / "x.pt")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(line.strip() for line in str(error.value).splitlines() if line.startswith("    ")))
    assert {name: value.tolist() for name, value in read("x.tensors.pt").items()} == {"a": [1] * 2, "b": [1] * 3}


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16])
def test_tensors_of_dtypes_that_are_not_read_are_spoken_of_as_such(tmp_path, dtype, archive):
    torch.save({"a": torch.ones(2).to(dtype)}, tmp_path / "x.pt", _use_new_zipfile_serialization=archive)
    with pytest.raises(InvalidModelError, match=r"x\.pt: holds tensors of a dtype that edgedm does not read"):
        read(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore")
def test_the_older_form_is_read_as_the_archive_is(tmp_path):
    base = torch.arange(12.0)
    content = {
        "views": [base[2:5], base.reshape(3, 4).T, base],
        "half": torch.ones(2).half(),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "empty": torch.zeros(0),
        "sparse": torch.eye(3).to_sparse(),
        "state": torch.nn.Linear(2, 3).state_dict(),
    }
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    torch.testing.assert_close(read(tmp_path / "x.pt"), content)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_file_is_named_and_never_run(tmp_path, archive):
    torch.save({"state_dict": Bomb(tmp_path / "ran")}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=archive)
    with pytest.raises(InvalidModelError, match=r"io\.open|__builtin__\.open|builtins\.open"):
        read(tmp_path / "x.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_bare_pickle_is_refused_too(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": Bomb(tmp_path / "ran")}))
    with pytest.raises(InvalidModelError, match=r"x\.pt"):
        read(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_safetensors_files_are_read_by_the_same_names(tmp_path, state):
    save_file({"model.diffusion_model." + name: value for name, value in state.items()}, tmp_path / "m.safetensors")
    assert import_checkpoint(tmp_path / "m.safetensors", "ldm", **OPTIONS).outcome.ok
    (tmp_path / "m.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:-9])
    with pytest.raises(InvalidModelError, match="safetensors"):
        read(tmp_path / "m.safetensors")


@pytest.mark.parametrize("keep", [0, 1, 3, 100, 5_000, 20_000, -1, -30, -2000])
@pytest.mark.parametrize("archive", [True, False])
def test_a_truncated_file_is_refused(tmp_path, state, keep, archive):
    path = tmp_path / "x.ckpt"
    torch.save(lightning(state), path, _use_new_zipfile_serialization=archive)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InvalidModelError, match=r"x\.ckpt"):
        read(path)


def with_pickle(source, target, change):
    """A copy of an archive of torch.save whose pickle is `change`d."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_cut_at_any_byte_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2), "b": [1, 2.5, 10**30, "text"]}, tmp_path / "x.pt")
    with_pickle(tmp_path / "x.pt", tmp_path / "y.pt", lambda content: content)
    assert read(tmp_path / "y.pt")["b"][3] == "text"
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        whole = archive.read("x/data.pkl")
    for size in range(len(whole)):
        with_pickle(tmp_path / "x.pt", tmp_path / "y.pt", lambda content, size=size: content[:size])
        with pytest.raises(InvalidModelError, match=r"y\.pt"):
            read(tmp_path / "y.pt")


@pytest.mark.filterwarnings("ignore")
def test_an_altered_byte_of_a_pickle_raises_nothing_else(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        whole = archive.read("x/data.pkl")
    for place in range(len(whole)):
        altered = whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :]
        with_pickle(tmp_path / "x.pt", tmp_path / "y.pt", lambda _content, altered=altered: altered)
        with contextlib.suppress(InvalidModelError):
            read(tmp_path / "y.pt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path, said in ((tmp_path / "nothing.ckpt", "no such file"), (tmp_path, "expected a file, got a folder")):
        with pytest.raises(InvalidModelError, match=said):
            read(path)


def test_compressed_records_are_refused_before_they_unpack(tmp_path, state):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(InvalidModelError, match="compressed"):
        read(tmp_path / "y.pt")


@pytest.mark.parametrize("content", [[], {}, 3, "text", None, torch.zeros(2), {"state_dict": 5}, {"state_dict": {}}])
@pytest.mark.parametrize("layout", ["ldm", "ddim", "bidm-ldm"])
def test_files_of_other_content_are_refused(tmp_path, content, layout):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InvalidModelError, match=r"x\.pt"):
        import_checkpoint(tmp_path / "x.pt", layout, weights="raw")
