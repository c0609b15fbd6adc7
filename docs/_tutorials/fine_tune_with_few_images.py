"""
Fine-tune with few images
=========================

Forty images are few to learn from. A network that has learned from many others knows what to look
at: its *backbone* stays as it is, and only its last layer, the *head*, is new.
"""

# %%
# An old task and a new one
# -------------------------
# The first 1,200 images, with the digits as their targets, stand for the large data that somebody
# else had. Our own question is another one, whether a digit is odd, and we have forty images with
# an answer. The rest of them is for measuring.

import torch
from sklearn.datasets import load_digits

digits = load_digits()
inputs = torch.as_tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
targets = torch.as_tensor(digits.target, dtype=torch.int64)

large = (inputs[:1200], targets[:1200])
odd = targets % 2
few, test = (inputs[1200:1240], odd[1200:1240]), (inputs[1240:], odd[1240:])
print(f"{len(few[1])} images to learn from, {len(test[1])} to measure on")

# %%
# Pretraining
# -----------
# A small convolutional network learns to tell the ten digits apart. With pretrained weights from
# somewhere else this part is a file: see :doc:`/how-to/weights`.

from torch import nn

from finetunelib import Trainer


def network(classes: int) -> nn.Module:
    """Return a convolutional network for images of 8 by 8 pixels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        ),
        nn.Sequential(nn.Flatten(), nn.Linear(256, classes)),
    )


pretrained = network(10)
Trainer(pretrained, lr=0.05, progress=False).fit(large, epochs=6)

# %%
# A new head
# ----------
# The head is found by following the data back from the outputs, replaced by one with as many
# outputs as there are new classes, and everything else is frozen.

import copy

from finetunelib import freeze_and_replace_head
from finetunelib.finetuning import find_head

print(find_head(pretrained, inputs[:2]))

torch.manual_seed(0)  # The new head's first weights.
model = copy.deepcopy(pretrained)
freeze_and_replace_head(model, num_classes=2, example_input=inputs[:2])
print([name for name, parameter in model.named_parameters() if parameter.requires_grad])

# %%
# Only these two tensors learn. The rest includes BatchNorm's running statistics, which a plain
# ``requires_grad = False`` would leave moving (:doc:`/how-to/freeze-batchnorm`).

trainer = Trainer(model, lr=0.02, batch_size=10, progress=False)
before = trainer.evaluate(test)["accuracy"]
history = trainer.fit(few, test, epochs=30)
print(f"{before:.1%} before, {history['val_accuracy'][-1]:.1%} after")
print(history.certificate)

# %%
# Was it worth it?
# ----------------
# The same network, on the same forty images, from random weights:

scratch = Trainer(network(2), lr=0.02, batch_size=10, progress=False)
from_nothing = scratch.fit(few, test, epochs=30)
print(f"{from_nothing['val_accuracy'][-1]:.1%} from random weights")

from finetunelib.visualization import plot_history

figure = plot_history({"new head": history, "random weights": from_nothing})

# %%
# Features help where they are about what the new task asks for. Who knows the ten digits knows
# which of them are odd. Had the network learned the digits 0 to 4, and were the new task the
# digits 5 to 9, the two curves would lie close together: on images so small, strokes are quickly
# learned. The task here was picked among several small ones, as one that suits fine-tuning; the
# picture shows how such a gain looks, and does not prove that every task has one.

# %%
# A little deeper
# ---------------
# The last part of the backbone can learn too. Unfreezing is one line, and a small learning rate
# keeps what the backbone knows (:doc:`/concepts/fine-tuning-rate`). Measure whether it helps:
# with few images it may as well do harm.

from finetunelib.finetuning import unfreeze

unfreeze(model, "0.4")  # The second convolution; its BatchNorm stays frozen.
trainer = Trainer(model, lr=0.005, batch_size=10, progress=False)
history = trainer.fit(few, test, epochs=15)
print(f"{history['val_accuracy'][-1]:.1%} with one more layer")
print(history.certificate)

# %%
# **Next**: :doc:`custom_head`, for a head that is more than a layer.
