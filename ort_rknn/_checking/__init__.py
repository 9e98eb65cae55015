"""Compares compiled models with their ONNX."""
