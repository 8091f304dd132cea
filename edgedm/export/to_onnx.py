"""A denoiser as one ONNX graph: torch's exporter, then clean-ups that keep every weight packed.

The exporter sees the low-bit layers' own `forward`; `edgedm.ops` emits a node of our domain for every sign, packed
weight and table. Afterwards the quantisers' markers become QuantizeLinear and DequantizeLinear, each node keeps the
path of its torch module as its only metadata, and constants carry the names of the buffers that they came from.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgedm import __version__
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export.expand_quantizers import expand_quantizers
from edgedm.export.graph_io import MODULE_KEY
from edgedm.models.decoder import LatentDecoder
from edgedm.models.denoiser import Denoiser
from edgedm.ops import IR_VERSION, ONNX_OPSET, attach_functions, infer_shapes
from edgedm.quant.geometry import Geometry
from edgedm.quant.integer import QuantLayer, UniformQuantizer
from edgedm.quant.running import RUNNING_LAYERS, RUNNING_QUANTIZERS

WRAPPER = "unet."  # the denoiser's own child: module paths are those of the UNet inside
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"

_FLOAT_LAYERS = (
    nn.Conv2d,
    nn.Linear,
    nn.Embedding,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.SiLU,
    nn.AvgPool2d,
    nn.Dropout,
    nn.Identity,
)


def build_graph(module: Denoiser, inputs: Mapping[str, Tensor]) -> ir.Model:
    """Trace `module` on example `inputs` (name -> tensor, the order of its forward) into a graph.

    The result has our functions attached, static shapes, and no metadata but the nodes' module paths. Raises
    UnsupportedError naming the module whose layer or operation edgedm or torch's exporter doesn't know.
    """
    check_layers(module)
    return _trace(module, module.unet, inputs, module.output_names, "step")


def build_decoder_graph(decoder: LatentDecoder, latent_shape: tuple[int, int, int]) -> ir.Model:
    """Trace the decoder of a latent model, for one latent of `latent_shape`; as `build_graph`."""
    check_layers(decoder)
    return _trace(decoder, decoder, {"latent": torch.zeros(1, *latent_shape)}, ["image"], "decoder")


def _trace(
    module: nn.Module, network: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], name: str
) -> ir.Model:
    """Trace `module`; the paths of its nodes and constants are those within `network`."""
    try:
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=outputs,
                opset_version=ONNX_OPSET,
            )
    except (torch.onnx.errors.OnnxExporterError, torch.onnx.errors.UnsupportedOperatorError) as error:
        raise UnsupportedError(f"{type(network).__name__}: torch.onnx cannot export it: {error}") from error
    assert program is not None
    model = program.model
    assert isinstance(model, ir.Model)
    _keep_only_module_paths(model)
    _name_constants(model, module, network)
    expand_quantizers(model)
    model.graph.name = name
    model.ir_version, model.producer_name, model.producer_version = IR_VERSION, "edgedm", __version__
    attach_functions(model)
    infer_shapes(model)
    return model


def check_layers(module: nn.Module) -> None:
    """Raise UnsupportedError naming the first layer that edgedm cannot run, InvalidModelError for a broken table."""
    network = module.unet if isinstance(module, Denoiser) else module
    known = (*RUNNING_LAYERS, *RUNNING_QUANTIZERS, *_FLOAT_LAYERS)
    for path, layer in network.named_modules():
        owns_data = next(layer.parameters(recurse=False), next(layer.buffers(recurse=False), None)) is not None
        plain = type(layer).__module__.startswith("torch.nn.") and not any(layer.children())
        if (owns_data or plain) and not isinstance(layer, (*known, nn.ModuleList, nn.ModuleDict, nn.Sequential)):
            raise UnsupportedError(
                f"layer {path!r}: {type(layer).__name__} is not supported; edgedm exports "
                f"{', '.join(sorted(kind.__name__ for kind in known))}"
            )
        if isinstance(layer, nn.Conv2d) and (
            layer.groups != 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros"
        ):
            raise UnsupportedError(
                f"layer {path!r}: Conv2d with groups {layer.groups}, dilation {layer.dilation}, padding "
                f"{layer.padding_mode!r}; expected groups 1, dilation 1, padding 'zeros'"
            )
        if isinstance(layer, QuantLayer):
            _check_geometry(path, layer.geometry)
        if isinstance(layer, UniformQuantizer):
            _check_table(path, layer)


def _check_geometry(path: str, geometry: Geometry) -> None:
    plain = geometry.groups == 1 and geometry.dilation in ((), (1, 1))
    if geometry.spatial not in (0, 2) or not plain:
        raise UnsupportedError(
            f"layer {path!r}: a quantised convolution over {geometry.spatial} axes with groups {geometry.groups}, "
            f"dilation {geometry.dilation}; expected a linear layer, or a Conv2d with groups 1 and dilation 1"
        )


def _check_table(path: str, quantizer: UniformQuantizer) -> None:
    step, zero = quantizer.table[:, : quantizer.heads], quantizer.table[:, quantizer.heads :]
    top = 2**quantizer.bits - 1
    if not bool((step > 0).all() and (zero == zero.round()).all() and (zero >= 0).all() and (zero <= top).all()):
        raise InvalidModelError(
            f"quantiser {path!r}: steps from {float(step.min()):g}, zero points {float(zero.min()):g}.."
            f"{float(zero.max()):g}; expected positive steps and whole zero points of 0..{top}"
        )


def _keep_only_module_paths(model: ir.Model) -> None:
    """Everything else that the exporter notes (stack traces, paths of its machine) has no place in a file."""
    for node in model.graph:
        path = _module_path(node)
        node.metadata_props.clear()
        node.metadata_props[MODULE_KEY] = path
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.doc_string = model.doc_string = None


def _module_path(node: ir.Node) -> str:
    """Return the innermost module's path; the exporter notes the scopes as the text of a list of strings."""
    scopes = node.metadata_props.get(_SCOPES_KEY, "[]").strip("[]").replace("'", "").replace('"', "").split(", ")
    path = scopes[-2] if len(scopes) > 1 else ""  # the last is the traced operation's name
    return "" if path == WRAPPER.rstrip(".") else path.removeprefix(WRAPPER)


def _name_constants(model: ir.Model, module: nn.Module, network: nn.Module) -> None:
    """Name initialisers by module path, those too that the exporter derived from a buffer by a reshape."""
    initializers = model.graph.initializers
    for name in list(initializers):
        value = initializers[name]
        consumers = [use.node for use in value.uses()]
        derived = name not in module.state_dict() and consumers
        better = _source(value, network, consumers[0].metadata_props[MODULE_KEY]) if derived else name
        better = better.removeprefix(WRAPPER)
        if better != name and better not in initializers:
            del initializers[name]
            value.name = better
            initializers[better] = value


def _source(value: ir.Value, network: nn.Module, path: str) -> str:
    """Return the name of the parameter or buffer of the module at `path` that holds the same numbers."""
    assert value.name is not None and value.const_value is not None
    try:
        owner = network.get_submodule(path)
    except AttributeError:
        return value.name
    data = value.const_value.numpy().ravel()
    for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
        if tensor.numel() == data.size and np.array_equal(tensor.detach().numpy().ravel(), data):
            return f"{path}.{name}"
    return value.name


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about its own dependencies; its errors still come as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
