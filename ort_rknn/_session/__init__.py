"""The session: onnxruntime's own, with a plan made first."""
