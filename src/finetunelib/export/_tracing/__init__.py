"""The call of PyTorch's exporter, its errors, and the annotations of the graph."""
