"""
Export and serve
================

Export a trained model to one ONNX file that runs without PyTorch, and serve it over HTTP. The file
is compared with the model before it is kept.
"""

# %%
# Train a model
# -------------

import torch
from sklearn.datasets import load_digits

from finetunelib import Trainer, build_mlp

digits = load_digits()
inputs = torch.as_tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
targets = torch.as_tensor(digits.target, dtype=torch.int64)

model = build_mlp(64, [64], 10, seed=0)
trainer = Trainer(model, lr=0.05, batch_size=32, progress=False)
trainer.fit((inputs[:-360], targets[:-360]), epochs=12)

# %%
# Export
# ------
# The example input defines the shape of the model's input; its number of rows does not matter.
# ``sample_inputs`` are real images on which the file is compared with the model.

import tempfile
from pathlib import Path

from finetunelib import export_onnx

folder = Path(tempfile.mkdtemp())
report = export_onnx(model, folder / "digits.onnx", inputs[:2], sample_inputs=inputs[:100])
print(str(report).replace(f"{folder}/", ""))

# %%
# The line that starts with "Verified" says that ONNX Runtime and PyTorch gave the same outputs at
# several batch sizes. If the outputs differ, ``export_onnx`` raises an exception and keeps no file
# (:doc:`/concepts/verification`).
#
# Use the file
# ------------
# This needs only ONNX Runtime and numpy, not PyTorch.

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(report.path)
name = session.get_inputs()[0].name
image = inputs[-1].numpy()
(logits,) = session.run(None, {name: image[np.newaxis]})

import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(
    1, 2, figsize=(6, 2.4), width_ratios=[1, 2], layout="constrained"
)
left.imshow(image[0], cmap="gray_r")
left.set_title(f"a {int(targets[-1])}", fontsize=10)
left.axis("off")
right.bar(range(10), logits[0])
right.set_xticks(range(10))
right.set(xlabel="class", ylabel="logit")

# %%
# Serve it
# --------
# Python's built-in web server is enough for an example. It takes the 64 pixels of an image as JSON
# and returns the digit. The pixels are divided by 16, as in training; :doc:`/how-to/preprocessing`
# shows how to do this inside the file.

import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer


class Answer(BaseHTTPRequestHandler):
    """Returns the digit shown by a list of 64 pixels from 0 to 16."""

    def do_POST(self) -> None:
        """Run the file on one image."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        pixels = np.asarray(json.loads(body), dtype=np.float32).reshape(1, 1, 8, 8) / 16
        (logits,) = session.run(None, {name: pixels})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"digit": int(logits.argmax())}).encode())

    def log_message(self, *args: object) -> None:
        """Log nothing."""


server = HTTPServer(("127.0.0.1", 0), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()

# %%
# The client needs neither PyTorch nor ONNX:

pixels = digits.images[-1].flatten().tolist()
url = f"http://127.0.0.1:{server.server_port}"
with urllib.request.urlopen(url, data=json.dumps(pixels).encode()) as response:
    print(response.read().decode())
server.shutdown()
server.server_close()

# %%
# A production service also needs input checks, limits and several processes. In a web framework,
# the same three lines open the file, get the name of its input, and run it.
#
# **Next**: :doc:`see_a_model`, which opens a model in Netron, and :doc:`/how-to/export-fails`.
