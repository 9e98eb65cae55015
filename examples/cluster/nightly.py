"""A nightly batch with Ray Data: a folder of inputs through a model on all boards, results as Parquet.

    python examples/cluster/nightly.py /models/model.onnx inputs/ results/ --boards 2 [--address HOST:6379]

``inputs/`` has ``.npy`` files, each one or more samples with the first axis of the model's only input. ``results/``
gets a row per sample: the file's path, and a column per output. Every machine sees both folders and the model at these
paths, for example over NFS. If a board dies, Ray Data reruns what it was working on.
"""

from __future__ import annotations

import argparse
import os
import sys

import ray

from ort_rknn.files import read_onnx
from ort_rknn_ray import NpuBatches


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("inputs")
    parser.add_argument("results")
    parser.add_argument("--boards", type=int, default=1)
    parser.add_argument("--address", default="auto")
    given = parser.parse_args(arguments)
    model, inputs, results = map(os.path.abspath, (given.model, given.inputs, given.results))
    described = read_onnx(model)
    (image,) = described.inputs
    ray.init(address=given.address, ignore_reinit_error=True)
    samples = ray.data.read_numpy(inputs, include_paths=True)
    done = samples.map_batches(
        NpuBatches,
        fn_constructor_args=(model,),
        fn_constructor_kwargs={"columns": {image.name: "data"}},
        batch_size=32,
        batch_format="numpy",
        num_cpus=0,
        resources={"rknpu": 1},
        compute=ray.data.ActorPoolStrategy(size=given.boards),
    )
    done.select_columns(["path", *(output.name for output in described.outputs)]).write_parquet(results)
    print(f"{ray.data.read_parquet(results).count()} samples done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
