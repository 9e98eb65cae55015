"""Draws a few pictures and reads them with RapidOCR. Knows nothing of ort_rknn."""

import json
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rapidocr_onnxruntime import RapidOCR

LINES = ("Sourdough loaf 4.80", "Espresso 2.40", "Open daily 7:30", "Thank you")
SIZES = ((640, 320), (500, 400), (700, 350), (300, 300))


def picture():
    image = Image.new("RGB", SIZES[0], "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(34)
    for row, line in enumerate(LINES):
        pen.text((30, 20 + 70 * row), line, fill="black", font=font)
    return image


def main():
    reader = RapidOCR()
    texts, boxes, scores = [], [], []
    for size in SIZES:
        found, _ = reader(np.asarray(picture().resize(size))[:, :, ::-1])
        for box, text, score in found:
            texts.append(text)
            boxes.append(np.asarray(box).tolist())
            scores.append(float(score))
    assert texts[0].replace(" ", "") == LINES[0].replace(" ", ""), texts
    json.dump({"texts": texts, "boxes": boxes, "scores": scores}, sys.stdout)


if __name__ == "__main__":
    main()
