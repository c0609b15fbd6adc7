"""Comparing an ONNX file with the model that it was exported from."""
