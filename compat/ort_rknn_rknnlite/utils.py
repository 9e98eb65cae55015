"""``rknnlite.utils``, which programs import without using anything in it."""
