"""Makes the committed exports in tests/convert/models, with torch's exporter and its default settings.

    pip install torch==2.13.0 onnxscript && python tests/convert/make_torch.py

Untrained, seeded weights. The exporter writes opset 20, its own names and one file per model.
"""

from pathlib import Path

import onnx
import torch
from torch import nn

FOLDER = Path(__file__).with_name("models")


class Detector(nn.Module):
    """A small YOLO: SiLU blocks, two strides, boxes by distances of a softmax, boxes and scores in one output."""

    def __init__(self):
        super().__init__()

        def block(inputs, outputs, stride):
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
            )

        self.stem = nn.Sequential(block(3, 8, 2), block(8, 16, 2))
        self.deep = block(16, 24, 2)
        self.near, self.far = nn.Conv2d(16, 4 * 8 + 3, 1), nn.Conv2d(24, 4 * 8 + 3, 1)
        self.register_buffer("bins", torch.arange(8.0).view(1, 1, 8, 1))

    def forward(self, images):
        first = self.stem(images)
        found = []
        for head, grid, stride in ((self.near(first), 16, 4), (self.far(self.deep(first)), 8, 8)):
            flat = head.flatten(2)
            distances = (flat[:, :32].view(-1, 4, 8, grid * grid).softmax(2) * self.bins).sum(2)
            ys, xs = torch.meshgrid(torch.arange(grid) + 0.5, torch.arange(grid) + 0.5, indexing="ij")
            centers = torch.stack((xs, ys)).view(1, 2, -1)
            boxes = torch.cat((centers - distances[:, :2], centers + distances[:, 2:]), 1) * stride
            found.append(torch.cat((boxes, flat[:, 32:].sigmoid()), 1))
        return torch.cat(found, 2)


class Transformer(nn.Module):
    """Token numbers in, features of each out: embedding, two layers of attention with GELU, a mean over tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu", dropout=0.0) for _ in range(2)
        )
        self.out = nn.Linear(32, 5)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.out(x.mean(1)), x


def main():
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    made = {
        "torch_detector": (Detector(), torch.rand(1, 3, 64, 64), ["images"], ["output0"]),
        "torch_transformer": (Transformer(), torch.zeros(1, 16, dtype=torch.int64), ["ids"], ["logits", "features"]),
    }
    for name, (model, example, inputs, outputs) in made.items():
        torch.onnx.export(
            model.eval(),
            (example,),
            FOLDER / f"{name}.onnx",
            input_names=inputs,
            output_names=outputs,
            external_data=False,
        )
        leave_out_notes(FOLDER / f"{name}.onnx")


def leave_out_notes(path):
    """The exporter's notes on where each node came from: stack traces, most of the file."""
    model = onnx.load(path)
    for each in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input):
        del each.metadata_props[:]
    for each in (*model.graph.output, *model.graph.initializer):
        del each.metadata_props[:]
    onnx.save(model, path)


if __name__ == "__main__":
    main()
