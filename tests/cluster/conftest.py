"""A cluster on this machine, each node with its own virtual board. Uses only loopback addresses."""

import importlib.util
import os
import tempfile

import pytest

_found = importlib.util.find_spec("ray")
#: A folder of that name without a package in it does not count.
HAVE_RAY = _found is not None and _found.origin is not None
#: They need the extra "ray": tox -e cluster.
collect_ignore_glob = [] if HAVE_RAY else ["test_*.py"]
#: Read when ray is imported: False makes it use 127.0.0.1 as this machine's address.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
#: Nothing is sent anywhere.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

if HAVE_RAY:
    import ray
    from ray.cluster_utils import Cluster


class Boards:
    """A head node without an NPU, and nodes with one; every worker has a virtual NPU in its own process."""

    def __init__(self):
        self._before = dict(os.environ)
        # Inherited by the nodes' workers.
        os.environ["ORT_RKNN_DEVICE"] = "virtual:rk3588"
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        os.environ["PYTHONPATH"] = os.path.dirname(os.path.dirname(__file__))
        self._marks = tempfile.TemporaryDirectory()
        os.environ["TEST_MARKS"] = self._marks.name
        head = {"num_cpus": 4, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = []

    def connect(self):
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")

    def add(self, count=1):
        for _ in range(count):
            self.nodes.append(self._node())
        self.cluster.wait_for_nodes()

    def _node(self):
        resources = {"rknpu": 1, "rknpu_cores": 3}
        return self.cluster.add_node(num_cpus=2, resources=resources, node_ip_address="127.0.0.1")

    def kill(self):
        node = self.nodes.pop()
        self.cluster.remove_node(node, allow_graceful=False)

    def close(self):
        ray.shutdown()
        self.cluster.shutdown()
        os.environ.clear()
        os.environ.update(self._before)
        self._marks.cleanup()


@pytest.fixture
def cluster():
    made = Boards()
    try:
        yield made
    finally:
        made.close()
