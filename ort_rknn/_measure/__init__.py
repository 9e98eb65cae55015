"""Seeing and tuning: counters, benchmarks, traces."""
