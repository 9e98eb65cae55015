"""The command line: ``ort-rknn`` or ``python -m ort_rknn``."""
