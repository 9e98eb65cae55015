"""What a call gave, or raised."""


def caught(call):
    """The result of ``call()``, or the exception that it raised."""
    try:
        return call()
    except Exception as error:
        return error
