"""Export a detector as an ONNX graph, and check it against PyTorch."""
