"""The programs in examples/cluster run unmodified on two virtual boards."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import ray

EXAMPLES = Path(__file__).parents[2] / "examples" / "cluster"
PORT = 18766


def program(name, *arguments, **given):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **given)


def output(name, *arguments):
    process = program(name, *arguments)
    try:
        text, _ = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 0, text
    return text


@pytest.mark.timeout(900)
def test_programs(cluster, models, tmp_path):
    cluster.add(2)
    address = f"--address={cluster.cluster.address}"
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    x = np.random.default_rng(3).standard_normal((40, 1, 3, 32, 32)).astype(np.float32)
    for k, one in enumerate(x):
        np.save(inputs / f"{k:03}.npy", one)
    model = models / "conv_f16.onnx"
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    want = {f"{k:03}": session.run(None, {"x": one})[0] for k, one in enumerate(x)}

    told = output("stream.py", model, inputs, address)
    assert told.count("RKNNExecutionProvider, 6 calls at once") == 2
    assert "frame 39: (1, 8, 16, 16)" in told
    assert "40 frames" in told

    assert "40 samples done" in output("nightly.py", model, inputs, tmp_path / "results", "--boards=2", address)
    cluster.connect()
    rows = ray.data.read_parquet(str(tmp_path / "results")).take_all()
    assert sorted(Path(row["path"]).stem for row in rows) == sorted(want)
    for row in rows:
        np.testing.assert_allclose(row["y"], want[Path(row["path"]).stem][0], atol=0.01)
    ray.shutdown()

    service = program("service.py", model, "--boards=2", f"--port={PORT}", address)
    try:
        lines = []
        for line in service.stdout:
            lines.append(line)
            if line.startswith("ready:"):
                break
        else:
            raise AssertionError("".join(lines))
        told = output("client.py", f"http://127.0.0.1:{PORT}/", tmp_path / "answers", *sorted(inputs.glob("*.npy")))
        assert "40 of 40 inputs answered" in told
        for name, array in want.items():
            with np.load(tmp_path / "answers" / f"{name}.npz", allow_pickle=False) as file:
                np.testing.assert_allclose(file["y"], array, atol=0.01)
        service.send_signal(signal.SIGINT)
        service.stdout.read()
        assert service.wait(60) == 0
    finally:
        service.kill()
        service.stdout.close()


def test_kubernetes_pods_have_no_privileges():
    import yaml

    documents = list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))
    pods = [each["spec"]["template"]["spec"] for each in documents if each["kind"] != "Service"]
    assert len(pods) == 2
    for pod in pods:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all("hostPath" not in volume for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert not container["securityContext"].get("privileged")
    (board,) = pods[1]["containers"]
    assert board["resources"]["limits"]["squat.ai/rknpu"] == 1


def test_the_board_s_command_in_kubernetes(tmp_path):
    """The pod's shell line, with a stand-in for ``ray``: each of the board's arguments reaches it unsplit."""
    import yaml

    daemons = list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))[2]
    (board,) = daemons["spec"]["template"]["spec"]["containers"]
    (tmp_path / "ray").write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n')
    (tmp_path / "ray").chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    for device, code in (("virtual:rk3588", 0), ("rk3588", 1)):
        environment = {**os.environ, "PATH": path, "ORT_RKNN_DEVICE": device}
        done = subprocess.run(
            [*board["command"], *board["args"]],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        assert ('<--resources={"rknpu":1,"rknpu_cores":3}>' in done.stdout) == (code == 0)
        assert ("no NPU is usable" in done.stderr) == (code == 1)
