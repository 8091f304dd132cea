"""The ops written as ONNX functions in onnxscript, one file an op or a family."""
