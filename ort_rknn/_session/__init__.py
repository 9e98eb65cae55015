"""The session: onnxruntime's own, over a model that was planned first."""
