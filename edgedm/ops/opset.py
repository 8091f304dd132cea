"""The two onnxscript opsets: `edgedm`, which graphs name, and its private parts, which `library` inlines."""

from onnxscript.values import Opset

from edgedm.ops.domain import DOMAIN, VERSION

PARTS_DOMAIN = "edgedm.parts"

EDGEDM = Opset(DOMAIN, VERSION)
PARTS = Opset(PARTS_DOMAIN, 1)
