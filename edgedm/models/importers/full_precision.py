"""Float checkpoints with CompVis' and ddim's names: the models that low-bit training starts from."""

from typing import Any

from edgedm.models.checkpoint import Checkpoint
from edgedm.models.importers.assemble import assemble
from edgedm.models.importers.containers import ddim_list, latent_diffusion
from edgedm.models.importers.layout import CifarOptions, Layout, LDMOptions, Report, make_config, name_modules
from edgedm.models.importers.tensors import Tensors
from edgedm.models.roles import FLOAT


def _ldm(content: Any, file: str, options: LDMOptions, report: Report) -> Checkpoint:
    return _float(latent_diffusion(content, file, options.weights, report=report), options, report)


def _cifar(content: Any, file: str, options: CifarOptions, report: Report) -> Checkpoint:
    return _float(ddim_list(content, file, options.weights), options, report)


def _float(tensors: Tensors, options: LDMOptions | CifarOptions, report: Report) -> Checkpoint:
    naming = name_modules(tensors, options)
    config = make_config(tensors, naming, options, report, "fp32", roles=FLOAT)
    return assemble(tensors, naming, config, lambda _module, _layer: None)


LDM = Layout("ldm", "latent-diffusion, full precision (openaimodel.UNetModel)", LDMOptions, _ldm)
CIFAR = Layout("ddim", "ermongroup/ddim, full precision", CifarOptions, _cifar)
