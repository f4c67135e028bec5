"""A detector as one ONNX graph, checked against PyTorch, and run."""
