"""Quantisers and low-bit layers: as they train (`methods`) and as they run (`inference`)."""
