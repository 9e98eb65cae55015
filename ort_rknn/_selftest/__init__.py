"""``ort_rknn.selftest()``: what only a board settles, tried on the board."""
