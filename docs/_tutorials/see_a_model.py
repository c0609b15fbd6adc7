"""
See a model
===========

View a network in three ways: as a table of its layers, as a graph in Netron, and by its weights.
"""

# %%
# The table
# ---------
# ``summary`` runs the model once. For each module, it shows the output shape, the number of
# parameters, how many of them are trainable, and the mode in which the module runs.

import torch
from torch import nn

from finetunelib import freeze_and_replace_head
from finetunelib.visualization import summary

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(4),
    nn.Flatten(),
    nn.Linear(256, 10),
)
print(summary(model, torch.zeros(2, 1, 8, 8)))

# %%
# After the head is replaced, the table shows that everything else is frozen. In a notebook, the
# last line of a cell is displayed like this:

freeze_and_replace_head(model, num_classes=5, example_input=torch.zeros(2, 1, 8, 8))
table = summary(model, torch.zeros(2, 1, 8, 8))
table

# %%
# Its numbers are available as attributes:

print(f"{table.parameters:,} parameters, {table.bytes:,} bytes")

# %%
# The graph
# ---------
# ``visualize`` shows the model in Netron. The page is served locally and contacts no other host.
# It opens a browser if there is one; ``browser=False`` prevents this.

from finetunelib import visualize

with visualize(model, torch.zeros(2, 1, 8, 8), browser=False) as viewer:
    print(viewer.url.rpartition(":")[0])

# %%
# This is the page for the network of ``examples/mnist.py``. Click a node to see its attributes and
# weights.
#
# .. image:: /_static/netron-mnist.png
#    :alt: A network in Netron: a Reshape, two Gemm layers with a Relu between, shapes on every edge
#    :width: 320px
#
# The weights
# -----------
# A linear model of images has one weight per pixel and class. For each class, the weights form an
# image: blue pixels count for the digit, red pixels against it.

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from finetunelib import Trainer, build_mlp

digits = load_digits()
inputs = torch.as_tensor(digits.images, dtype=torch.float32).div(16)
targets = torch.as_tensor(digits.target, dtype=torch.int64)
linear = build_mlp(64, [], 10, seed=0)
Trainer(linear, lr=0.05, progress=False).fit((inputs, targets), epochs=30)

figure, axes = plt.subplots(2, 5, figsize=(7, 3.2))
images = linear.head.weight.detach().cpu().numpy().reshape(10, 8, 8)
for digit, (axis, image) in enumerate(zip(axes.flat, images, strict=True)):
    axis.imshow(image, cmap="RdBu", vmin=-1, vmax=1)
    axis.set_title(digit, fontsize=10)
    axis.axis("off")
figure.tight_layout()

# %%
# **Next**: :doc:`stop_and_resume`, and :doc:`/api/visualization` for every argument.
