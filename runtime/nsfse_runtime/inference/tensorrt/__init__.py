"""TensorRT engines instead of ONNX Runtime: building blocks, cache, device memory."""
