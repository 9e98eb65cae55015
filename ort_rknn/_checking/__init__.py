"""What was compiled against its ONNX."""
