"""Tile sizes: which registers a kernel family holds, by target and shape."""
