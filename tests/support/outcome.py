"""The result or the exception of a call."""


def caught(call):
    """The result of ``call()``, or the exception that it raised."""
    try:
        return call()
    except Exception as error:
        return error
