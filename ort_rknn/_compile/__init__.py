"""Compiles an ONNX with the vendor's toolkit, which runs in an environment of its own.

``toolkit`` finds or installs rknn-toolkit2; ``converter`` runs it in a process that exchanges JSON (``worker`` is the
other end); ``layers`` parses its log. A session that does not convert imports nothing from here.
"""
