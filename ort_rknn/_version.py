"""The version of ort_rknn. Packaging reads it here too."""

from typing import Final

#: Not onnxruntime's, which is ``ort_rknn.__version__``.
package_version: Final = "0.1.0"
