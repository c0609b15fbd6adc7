"""
Custom heads
============

By default, a new head is a linear layer. It can also be any module that maps features to logits,
or a function that creates one, and it can replace any part of the model.
"""

# %%
# We start with a convolutional network that is trained on the digits 0 to 4, and fifty images of
# the digits 5 to 9.

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from finetunelib import Trainer, freeze_and_replace_head

digits = load_digits()
inputs = torch.as_tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
targets = torch.as_tensor(digits.target, dtype=torch.int64)
old = targets < 5

torch.manual_seed(0)
pretrained = nn.Sequential()
pretrained.backbone = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
)
pretrained.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
Trainer(pretrained, lr=0.05, progress=False).fit((inputs[old], targets[old]), epochs=8)

new_inputs, new_targets = inputs[~old], targets[~old] - 5
few, test = (new_inputs[:50], new_targets[:50]), (new_inputs[50:], new_targets[50:])
example = inputs[:2]  # A batch that the model accepts: images of 8 by 8 pixels.

# %%
# A module
# --------
# ``find_head`` returns the number of features. The cosine classifier of Gidaris and Komodakis
# (2018) compares only the directions of vectors, not their lengths.

from finetunelib.finetuning import find_head


class CosineClassifier(nn.Module):
    """Computes scaled cosines between the features and one vector per class."""

    def __init__(self, in_features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, in_features) * in_features**-0.5)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits `(batch, classes)` of features `(batch, in_features)`."""
        directions = functional.normalize(self.weight, dim=1)
        return self.scale * functional.linear(functional.normalize(features, dim=1), directions)


torch.manual_seed(0)
cosine = copy.deepcopy(pretrained)
freeze_and_replace_head(cosine, head=CosineClassifier(find_head(cosine, example).in_features, 5))
print(cosine)

# %%
# A function
# ----------
# The function is called with the number of features, and its module is moved to the device and
# dtype of the old head. Dropout is off in the frozen backbone, and active in the new head while it
# is trained.

torch.manual_seed(0)
layers = copy.deepcopy(pretrained)
freeze_and_replace_head(
    layers,
    head=lambda width: nn.Sequential(
        nn.Linear(width, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 5)
    ),
)
print(layers.classifier)

# %%
# Another part
# ------------
# ``at=`` names the part to replace. Here it is the classifier including its pooling, which lets the
# new head use the positions of the features. The new head fits images of one size only, so we pass
# an example of that size for the dry run.

torch.manual_seed(0)
places = copy.deepcopy(pretrained)
freeze_and_replace_head(
    places,
    head=nn.Sequential(nn.Flatten(), nn.Linear(64 * 2 * 2, 5)),
    at="classifier",
    example_input=example,
)
print(places.classifier)

# %%
# Comparison
# ----------
# Each is trained like any other model.

models = {"cosine": cosine, "two layers": layers, "without pooling": places}
histories = {}
for name, model in models.items():
    trainer = Trainer(model, lr=0.02, batch_size=10, progress=False)
    histories[name] = trainer.fit(few, test, epochs=30)
    print(f"{name:<18}{histories[name]['val_accuracy'][-1]:.1%}")

import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(6, 3))
for name, history in histories.items():
    axis.plot(history["epoch"], history["val_accuracy"], label=name)
axis.set(xlabel="epoch", ylabel="val_accuracy", ylim=(0, 1))
axis.legend(frameon=False, loc="lower right")
figure.tight_layout()

# %%
# Which one is best depends on the data.
#
# A head that does not fit is refused, and the model keeps its old one:

from finetunelib.errors import HeadError

try:
    freeze_and_replace_head(copy.deepcopy(pretrained), head=nn.Linear(100, 5))
except HeadError as error:
    print(error)

# %%
# **Next**: :doc:`export_and_serve`, or :doc:`/concepts/heads` on how a head is found.
