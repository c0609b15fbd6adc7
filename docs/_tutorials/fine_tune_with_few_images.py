"""
Fine-tune with few images
=========================

Forty images are not enough to train a network from scratch. A pretrained network already computes
useful features: we keep its *backbone* unchanged and train only a new last layer, the *head*.
"""

# %%
# An old task and a new one
# -------------------------
# The first 1,200 images, labelled with the digits, replace a large dataset. The new task
# is to tell whether a digit is odd, with forty labelled images. The remaining images are the test
# set.

import torch
from sklearn.datasets import load_digits

digits = load_digits()
inputs = torch.as_tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
targets = torch.as_tensor(digits.target, dtype=torch.int64)

large = (inputs[:1200], targets[:1200])
odd = targets % 2
few, test = (inputs[1200:1240], odd[1200:1240]), (inputs[1240:], odd[1240:])
print(f"{len(few[1])} training images, {len(test[1])} test images")

# %%
# Pretraining
# -----------
# A small convolutional network learns to classify the ten digits. To load pretrained weights from
# a file instead, see :doc:`/how-to/weights`.

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
# The head is found by following the data back from the outputs. It is replaced by one with an
# output for each new class, and everything else is frozen.

import copy

from finetunelib import freeze_and_replace_head
from finetunelib.finetuning import find_head

print(find_head(pretrained, inputs[:2]))

torch.manual_seed(0)  # Initializes the new head.
model = copy.deepcopy(pretrained)
freeze_and_replace_head(model, num_classes=2, example_input=inputs[:2])
print([name for name, parameter in model.named_parameters() if parameter.requires_grad])

# %%
# Only these two tensors are trained. The running statistics of BatchNorm are frozen too; a plain
# ``requires_grad = False`` would not freeze them (:doc:`/how-to/freeze-batchnorm`).

trainer = Trainer(model, lr=0.02, batch_size=10, progress=False)
before = trainer.evaluate(test)["accuracy"]
history = trainer.fit(few, test, epochs=30)
print(f"{before:.1%} before, {history['val_accuracy'][-1]:.1%} after")
print(history.certificate)

# %%
# Comparison with random weights
# ------------------------------
# The same network, trained on the same forty images from random weights:

scratch = Trainer(network(2), lr=0.02, batch_size=10, progress=False)
from_nothing = scratch.fit(few, test, epochs=30)
print(f"{from_nothing['val_accuracy'][-1]:.1%} from random weights")

from finetunelib.visualization import plot_history

figure = plot_history({"new head": history, "random weights": from_nothing})

# %%
# Pretrained features help if they fit the new task. A network that recognizes the ten digits
# already knows which of them are odd. If it had been trained on the digits 0 to 4, and the new task
# were the digits 5 to 9, the two curves would be close: strokes in such small images are quickly
# learned. We chose this task because it suits fine-tuning; not every task gains as much.

# %%
# Unfreezing one more layer
# -------------------------
# The last part of the backbone can be trained too. A small learning rate preserves what it has
# learned (:doc:`/concepts/fine-tuning-rate`). Check whether it helps: with few images, it can also
# hurt.

from finetunelib.finetuning import unfreeze

unfreeze(model, "0.4")  # The second convolution; its BatchNorm stays frozen.
trainer = Trainer(model, lr=0.005, batch_size=10, progress=False)
history = trainer.fit(few, test, epochs=15)
print(f"{history['val_accuracy'][-1]:.1%} with one more layer")
print(history.certificate)

# %%
# **Next**: :doc:`custom_head`.
