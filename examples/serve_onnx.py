"""Run an exported classifier with only onnxruntime and numpy, without PyTorch.

python examples/serve_onnx.py runs/mnist/mnist.onnx runs/mnist/digits.npy

The file contains its preprocessing, its labels and a self-test (see `export_onnx`); the images are
raw.
"""

import base64
import io
import json
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime


def main(model: str, images: str) -> None:
    """Check the installation with the file's self-test, and print a label for each image."""
    session = onnxruntime.InferenceSession(model)
    metadata = session.get_modelmeta().custom_metadata_map
    labels, test = json.loads(metadata["labels"]), json.loads(metadata["self_test"])
    samples = {name: array(text) for name, text in test["inputs"].items()}
    for name, expected in test["outputs"].items():
        (found,) = session.run([name], samples)
        if not np.abs(np.asarray(found) - array(expected)).max() <= test["tolerance"]:
            sys.exit(f"{model} computes different outputs here than where it was exported.")
    (scores,) = session.run(None, {session.get_inputs()[0].name: np.load(images)})
    for row in np.asarray(scores):
        print(labels[row.argmax()], f"{row.max():.1%}")


def array(text: str) -> npt.NDArray[Any]:
    """Return an array from its text in a file."""
    return np.asarray(np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
