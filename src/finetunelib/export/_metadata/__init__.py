"""What an ONNX file says about itself."""
