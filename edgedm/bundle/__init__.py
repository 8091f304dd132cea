"""What ships to a device: the bundle folder, its manifest, and the checks before anything of it is used."""

from edgedm.bundle.manifest import FORMAT, Manifest, Node, Operand, Port, Section, Variant
from edgedm.bundle.store import Bundle, load, write

__all__ = ["FORMAT", "Bundle", "Manifest", "Node", "Operand", "Port", "Section", "Variant", "load", "write"]
