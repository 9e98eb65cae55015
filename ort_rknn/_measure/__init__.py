"""Observability: counters, diagnosis, model files, load of processes, traces."""
