"""Observability and tuning: counters, benchmarks, traces."""
