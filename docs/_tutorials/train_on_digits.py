"""
Train on digits
===============

From images on the disk to a network that reads handwritten digits, and a look at what it gets
wrong. Takes a few seconds on any machine.
"""

# %%
# The data
# --------
# scikit-learn brings 1,797 digits of 8 by 8 pixels. A network takes floating-point numbers, and
# learns best when they are small: pixels from 0 to 16 become values from 0 to 1. The last 360
# images are kept back, to measure on.

import torch
from sklearn.datasets import load_digits

digits = load_digits()
inputs = torch.as_tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
targets = torch.as_tensor(digits.target, dtype=torch.int64)
train, val = (inputs[:-360], targets[:-360]), (inputs[-360:], targets[-360:])

print("inputs", tuple(inputs.shape), inputs.dtype)
print("targets", tuple(targets.shape), targets.dtype, "from", int(targets.min()), "to 9")

# %%
# *Inputs* are what the model sees, one row a sample. *Targets* are what it should say: the number
# of the class, as a whole number from 0.

import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 8, figsize=(8, 1.4))
for axis, image, target in zip(axes, inputs, targets, strict=False):
    axis.imshow(image[0].numpy(), cmap="gray_r")
    axis.set_title(f"{int(target)}", fontsize=10)
    axis.axis("off")

# %%
# The model
# ---------
# 64 pixels go in, 10 *logits* come out, one for each class; the largest one is the answer.
# Between them stands one hidden layer of 64 values. With a seed the first weights are the same
# each time.

from finetunelib import Trainer, build_mlp

model = build_mlp(64, [64], 10, seed=0)
print(model)

# %%
# The training
# ------------
# An *epoch* is one pass over the data, and a *step* is one update of the weights, here from 32
# images. The default loss is cross-entropy, the default optimizer SGD with momentum.
# ``progress=False`` keeps the line that each epoch prints off this page.

trainer = Trainer(model, lr=0.05, batch_size=32, progress=False)
history = trainer.fit(train, val, epochs=12)
print(history)

# %%
# The history is a table with a column for each measurement. The training loss should fall, and
# the validation loss with it. Where the second one rises again while the first one falls, the
# model has begun to learn its training images by heart.

from finetunelib.visualization import plot_history

figure = plot_history(history)

# %%
# What it says
# ------------
# ``predict`` returns the logits in the order of the data. ``softmax`` turns them into shares that
# sum to 1.

logits = trainer.predict(val)
answers = logits.argmax(1)
wrong = int((answers != val[1]).sum())
print(f"{wrong} of {len(val[1])} are wrong; {trainer.evaluate(val)}")

# %%
# The mistakes of which it was most certain:

from finetunelib.visualization import plot_confusion, plot_predictions

mistakes = plot_predictions(model, val, count=8)

# %%
# Which digits it takes for which:

confusion = plot_confusion(model, val)

# %%
# Keep it
# -------
# A weights file holds the tensors and nothing that could run. It is written whole or not at all.

import tempfile
from pathlib import Path

from finetunelib.finetuning import load_weights, save_weights

path = save_weights(model, Path(tempfile.mkdtemp()) / "digits.safetensors")
print(load_weights(build_mlp(64, [64], 10), path))

# %%
# **Next**: :doc:`fine_tune_with_few_images`, where a trained network learns something new.
