"""
Stop and resume
===============

A run that is stopped and resumed gives bitwise the same result as an uninterrupted run. This
tutorial stops a run in the middle of an epoch and compares the two.
"""

# %%
# This function creates the model, the callback and the Trainer from scratch, as a new process
# would. Only the folder is shared between calls.

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from finetunelib import Trainer, build_mlp
from finetunelib.callbacks import ModelCheckpoint
from finetunelib.training import Callback, TrainContext

digits = load_digits()
inputs = torch.as_tensor(digits.images, dtype=torch.float32).div(16)
targets = torch.as_tensor(digits.target, dtype=torch.int64)


def train(folder: Path, *others: Callback) -> Trainer:
    """Train for four epochs in total, resuming from a checkpoint in the folder if there is one."""
    model = build_mlp(64, [64], 10, dropout=0.2, seed=0)
    saving = ModelCheckpoint(folder, every_n_steps=20)
    trainer = Trainer(model, lr=0.05, callbacks=[saving, *others], progress=False)
    trainer.fit((inputs, targets), epochs=4, resume_from=folder)
    return trainer


# %%
# Without interruption
# --------------------

uninterrupted = train(Path(tempfile.mkdtemp()))
print(uninterrupted.history)

# %%
# With a power cut
# ----------------
# This callback raises an error at step 50, which is in the second epoch and ten steps after the
# last checkpoint.


class PowerCut(Callback):
    """Raises at the fiftieth step."""

    def on_step_end(self, context: TrainContext) -> None:
        """Raise at step 50."""
        if context.state.step == 50:
            raise RuntimeError("power cut")


folder = Path(tempfile.mkdtemp())
try:
    train(folder, PowerCut())
except RuntimeError as error:
    print(error)
print(sorted(path.name for path in folder.iterdir()))

# %%
# The same function, called again, finds the newest complete checkpoint and resumes at step 41. It
# repeats the ten steps after that checkpoint.


class Beginning(Callback):
    """Prints where a run starts."""

    def on_fit_start(self, context: TrainContext) -> None:
        """Print the epoch and the step."""
        print(f"resumes in epoch {context.state.epoch + 1}, after step {context.state.step}")


resumed = train(folder, Beginning())

# %%
# Compare the runs bit for bit
# ----------------------------

actual, expected = resumed.model.state_dict(), uninterrupted.model.state_dict()
assert all(torch.equal(actual[name], expected[name]) for name in expected)
assert resumed.history["train_loss"] == uninterrupted.history["train_loss"]

import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(6, 3))
for name, trainer, style in (
    ("uninterrupted", uninterrupted, "-"),
    ("stopped and resumed", resumed, "o"),
):
    axis.plot(trainer.history["step"], trainer.history["train_loss"], style, label=name)
axis.axvline(50, linestyle=":", color="gray")
axis.annotate("power cut", (51, 1.9), fontsize=9)
axis.set(xlabel="step", ylabel="train_loss")
axis.legend(frameon=False)
figure.tight_layout()

print(f"{len(expected)} tensors and the losses of {len(uninterrupted.history)} epochs are equal")

# %%
# Ctrl-C loses no step: the Trainer completes the current step and writes a last checkpoint.
# :doc:`/how-to/stop-and-resume` lists what is guaranteed and what is not.
#
# **Next**: :doc:`/how-to/index`, with one page per question.
