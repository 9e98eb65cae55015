"""Counters of the NPU for Prometheus: ``pip install prometheus-client``. For a model that takes float32.

Register the collector once; each scrape returns the current numbers:

    python examples/prometheus_exporter.py model.onnx     # serves http://127.0.0.1:9400/metrics while it works
"""

import sys
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector

import ort_rknn


class NpuCollector(Collector):
    """``ort_rknn.stats()`` as Prometheus' metrics."""

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for sample in ort_rknn.stats().samples():
            if sample.name not in families:
                family = CounterMetricFamily if sample.kind == "counter" else GaugeMetricFamily
                families[sample.name] = family(sample.name, sample.help, labels=list(sample.labels))
            families[sample.name].add_metric(list(sample.labels.values()), sample.value)
        yield from families.values()


def main() -> None:
    import time

    import numpy as np
    from prometheus_client import start_http_server

    REGISTRY.register(NpuCollector())
    start_http_server(9400, "127.0.0.1")
    session = ort_rknn.InferenceSession(sys.argv[1])
    feed = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()}
    print("http://127.0.0.1:9400/metrics")
    while True:
        session.run(None, feed)
        time.sleep(0.01)


if __name__ == "__main__":
    main()
