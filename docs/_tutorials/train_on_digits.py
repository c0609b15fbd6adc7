"""
Train on digits
===============

Train a network that reads handwritten digits, and inspect its mistakes. Takes a few seconds on any
machine.
"""

# %%
# The data
# --------
# scikit-learn comes with 1,797 digits of 8 by 8 pixels. A network takes floating-point numbers and
# learns best if they are small: pixels from 0 to 16 become values from 0 to 1. The last 360 images
# are the validation data.

import torch
from sklearn.datasets import load_digits

digits = load_digits()
inputs = torch.as_tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
targets = torch.as_tensor(digits.target, dtype=torch.int64)
train, val = (inputs[:-360], targets[:-360]), (inputs[-360:], targets[-360:])

print("inputs", tuple(inputs.shape), inputs.dtype)
print("targets", tuple(targets.shape), targets.dtype, "from", int(targets.min()), "to 9")

# %%
# The model is called with the *inputs*, one row per sample. The *targets* are the expected answers:
# the number of the class, as an integer from 0.

import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 8, figsize=(8, 1.4))
for axis, image, target in zip(axes, inputs, targets, strict=False):
    axis.imshow(image[0].numpy(), cmap="gray_r")
    axis.set_title(f"{int(target)}", fontsize=10)
    axis.axis("off")

# %%
# The model
# ---------
# The input is 64 pixels. The output is 10 *logits*, one for each class, and the largest one is the
# answer. Between them is one hidden layer with 64 values. With a seed, the initial weights are the
# same each time.

from finetunelib import Trainer, build_mlp

model = build_mlp(64, [64], 10, seed=0)
print(model)

# %%
# Train the model
# ---------------
# An *epoch* is one pass over the data, and a *step* is one update of the weights, here from 32
# images. The default loss is cross-entropy, the default optimizer SGD with momentum.
# ``progress=False`` turns off the progress output.

trainer = Trainer(model, lr=0.05, batch_size=32, progress=False)
history = trainer.fit(train, val, epochs=12)
print(history)

# %%
# The history is a table with one column per metric. The training loss and the validation loss
# should both fall. If the validation loss rises while the training loss falls, the model overfits.

from finetunelib.visualization import plot_history

figure = plot_history(history)

# %%
# Check its answers
# -----------------
# ``predict`` returns the logits in the order of the data. ``softmax`` turns them into
# probabilities.

logits = trainer.predict(val)
answers = logits.argmax(1)
wrong = int((answers != val[1]).sum())
print(f"{wrong} of {len(val[1])} are wrong; {trainer.evaluate(val)}")

# %%
# The most confident mistakes:

from finetunelib.visualization import plot_confusion, plot_predictions

mistakes = plot_predictions(model, val, count=8)

# %%
# The digits that it confuses:

confusion = plot_confusion(model, val)

# %%
# Save the weights
# ----------------
# A weights file contains only tensors, no code. It is written atomically.

import tempfile
from pathlib import Path

from finetunelib.finetuning import load_weights, save_weights

path = save_weights(model, Path(tempfile.mkdtemp()) / "digits.safetensors")
print(load_weights(build_mlp(64, [64], 10), path))

# %%
# **Next**: :doc:`fine_tune_with_few_images`, which trains the network on a new task.
