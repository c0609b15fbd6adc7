"""The metadata of an ONNX file."""
