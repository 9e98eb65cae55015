"""``ort_rknn.selftest()``: tests on a board what only a board can settle."""
