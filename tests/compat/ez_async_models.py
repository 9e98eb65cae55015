"""What the tests of ort_rknn_ez_async share: models, feeds, and a session on the virtual NPU."""

from pathlib import Path

import numpy as np

MODELS = Path(__file__).parents[1] / "models"
CONV = MODELS / "conv_f16.rk3588.rknn"
DEVICE = {"device": "virtual:rk3588"}
X = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)


def model(name):
    return MODELS / f"{name}.rk3588.rknn"


def make(path=CONV, **options):
    """A session on the virtual NPU."""
    import ort_rknn_ez_async as ez

    return ez.InferenceSession(path, provider_options={**DEVICE, **options})
