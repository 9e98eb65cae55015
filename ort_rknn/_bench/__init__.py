"""``ort_rknn.bench()``: which options are fastest for a model on this machine."""
