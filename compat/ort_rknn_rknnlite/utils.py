"""``rknnlite.utils``, which programs import and use nothing of."""
