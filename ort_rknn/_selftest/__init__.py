"""``ort_rknn.selftest()``: tests on a board what cannot be known without one."""
