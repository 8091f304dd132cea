"""Seeded weights are not degenerate: what would hide a mistake does not occur."""

import pytest
import torch
from small_checkpoints import small
from w4a4_model import w4a4_checkpoint

from edgedm.ops import unpack_codes
from edgedm.quant.integer import QuantLayer, UniformQuantizer

MOST = 12  # of 16 codes


@pytest.fixture(scope="module")
def checkpoint():
    return w4a4_checkpoint(edges=tuple(range(0, 1000, 10)))


def kinds(checkpoint, kind: type) -> dict[str, torch.nn.Module]:
    found = {name: each for name, each in checkpoint.module.named_modules() if isinstance(each, kind)}
    assert len(found) > 10
    return found


def test_every_row_of_every_table_is_distinct(checkpoint) -> None:
    for name, quantizer in kinds(checkpoint, UniformQuantizer).items():
        assert len(torch.unique(quantizer.table, dim=0)) == len(quantizer.table), name
        assert not torch.equal(quantizer.table, quantizer.table.flip(0)) or len(quantizer.table) == 1, name


@pytest.mark.parametrize("timestep", [0, 505, 999])
def test_activations_use_most_of_their_codes(checkpoint, timestep: int) -> None:
    used: dict[str, tuple[int, int]] = {}

    def count(name: str):
        def hook(quantizer: UniformQuantizer, arguments, output) -> None:
            parts = output.unbind(1) if quantizer.heads > 1 else [output]
            used[name] = min(len(torch.unique(part)) for part in parts), arguments[0].numel()

        return hook

    handles = [each.register_forward_hook(count(name)) for name, each in kinds(checkpoint, UniformQuantizer).items()]
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    checkpoint.module(x, torch.tensor([timestep]), torch.zeros(1, dtype=torch.int64))
    for handle in handles:
        handle.remove()
    wide = [codes for name, (codes, size) in used.items() if size >= 256 and not name.endswith("weight")]
    assert len(wide) > 10
    assert sorted(wide)[len(wide) // 10] >= MOST  # one in ten may meet an input that calibration did not


def test_weights_zero_points_and_dilations_are_spread(checkpoint) -> None:
    layers = kinds(checkpoint, QuantLayer)
    large = [layer for layer in layers.values() if layer.weight_bits == 4 and layer.codes.numel() > 300]
    codes = [len(torch.unique(unpack_codes(layer.codes, 4, layer.shape))) for layer in large]
    assert min(codes) >= MOST
    zeros = torch.cat([layer.zero.float() - 7.5 for layer in large])
    assert (zeros.abs() > 1).float().mean() > 0.1
    dilated = [layer.dilation for layer in layers.values() if layer.dilation is not None]
    assert dilated and all((each != 1).float().mean() >= 0.1 for each in dilated)


def test_all_floats_are_those_of_a_saved_checkpoint(checkpoint) -> None:
    for tensor in checkpoint.module.state_dict().values():
        assert not tensor.is_floating_point() or torch.equal(tensor, tensor.half().float())


def test_binary_models_are_what_they_were() -> None:
    layers = [each for each in small("bidm").module.modules() if hasattr(each, "threshold")]
    assert layers and all(len(torch.unique(layer.threshold)) > 4 for layer in layers)
