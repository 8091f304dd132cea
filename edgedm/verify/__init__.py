"""Parity: hold a bundle against the torch checkpoint that it was made from."""
