"""What ships to a device: the bundle folder, its manifest, and the checks before anything of it is used."""

from edgedm.bundle.manifest import FORMAT, Manifest, Node, Operand, Port, Section, Strips, Variant
from edgedm.bundle.signature import require_signature
from edgedm.bundle.store import Bundle, load, sign, write

__all__ = [
    "FORMAT",
    "Bundle",
    "Manifest",
    "Node",
    "Operand",
    "Port",
    "Section",
    "Strips",
    "Variant",
    "load",
    "require_signature",
    "sign",
    "write",
]
