"""Calls that return before their result is there: threads, callbacks, pacing."""
