"""Constants of the ONNX domain `edgedm`."""

DOMAIN = "edgedm"
VERSION = 1
ONNX_OPSET = 21  # the first with int4; function bodies and exported graphs use the same
IR_VERSION = 10  # the one that goes with opset 21

INT4_MIN, INT4_MAX = -8, 7
