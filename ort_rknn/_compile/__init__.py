"""From an ONNX to compiled models: the vendor's toolkit in an environment of its own, and what is done around it.

``toolkit`` finds or installs rknn-toolkit2; ``converter`` runs it in a process that speaks JSON (``worker`` is the
other end); ``layers`` reads what it logged. Nothing here is imported by a session that does not convert.
"""
