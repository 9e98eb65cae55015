"""Asynchronous calls: threads, callbacks, pacing."""
