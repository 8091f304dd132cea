"""The layers and quantisers of a model as it runs: what export, verification and inspection look for by type."""

from edgedm.quant.inference import LOW_BIT_LAYERS, ActivationQuantizer
from edgedm.quant.integer import QuantLayer, UniformQuantizer

RUNNING_LAYERS = (*LOW_BIT_LAYERS, QuantLayer)
"""Layers with a packed weight."""

RUNNING_QUANTIZERS = (ActivationQuantizer, UniformQuantizer)
"""Quantisers of an activation, inside a layer or on an operand of attention."""
