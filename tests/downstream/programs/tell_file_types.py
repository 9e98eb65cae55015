"""Identifies a few files with Magika. Knows nothing of ort_rknn."""

import json
import sys
import tempfile
from pathlib import Path

from magika import Magika

FILES = {
    "a": "def main(argv):\n    for word in argv:\n        print(word.upper())\n\nmain(['bread'])\n" * 20,
    "b": "[package]\nname = 'bakery'\nversion = '1.0'\n\n[dependencies]\nserde = '1'\n" * 5,
    "c": "<!DOCTYPE html>\n<html><head><title>Bread</title></head><body><p>Sourdough</p></body></html>\n" * 10,
    "d": "SELECT name, price FROM loaves WHERE price < 5 ORDER BY price;\n" * 20,
    "e": '#include <stdio.h>\nint main(void) { printf("bread\\n"); return 0; }\n' * 10,
}


def main():
    magika = Magika()
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, text in FILES.items():
            paths.append(Path(folder) / name)
            paths[-1].write_text(text)
        results = [*magika.identify_paths(paths), magika.identify_bytes(FILES["a"].encode())]
    labels = [str(result.output.label) for result in results]
    assert labels[0] == labels[-1] == "python", labels
    json.dump({"labels": labels, "scores": [float(result.score) for result in results]}, sys.stdout)


if __name__ == "__main__":
    main()
