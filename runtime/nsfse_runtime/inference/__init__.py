"""A bundle of ONNX graphs, and the scorer that runs them."""
