"""Torch checkpoint -> one ONNX file with packed weights, and golden data beside it."""
