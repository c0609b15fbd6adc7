"""
Stop and resume
===============

A training that was stopped and resumed ends with the same bits as one that never stopped. Here it
is stopped in the middle of an epoch, and compared.
"""

# %%
# One function that trains. It makes everything anew, as a new process would: the model, the
# callback, the Trainer. Only the folder is the same.

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
    """Train for four epochs in all, going on from what is in the folder."""
    model = build_mlp(64, [64], 10, dropout=0.2, seed=0)
    saving = ModelCheckpoint(folder, every_n_steps=20)
    trainer = Trainer(model, lr=0.05, callbacks=[saving, *others], progress=False)
    trainer.fit((inputs, targets), epochs=4, resume_from=folder)
    return trainer


# %%
# Without a stop
# --------------

whole = train(Path(tempfile.mkdtemp()))
print(whole.history)

# %%
# With a power cut
# ----------------
# This callback ends the training with an error at step 50. That is inside the second epoch, ten
# steps after the last checkpoint.


class PowerCut(Callback):
    """Raises at the fiftieth step."""

    def on_step_end(self, context: TrainContext) -> None:
        """End it all."""
        if context.state.step == 50:
            raise RuntimeError("the lights went out")


from finetunelib.errors import CallbackError

folder = Path(tempfile.mkdtemp())
try:
    train(folder, PowerCut())
except CallbackError as error:
    print(error)
print(sorted(path.name for path in folder.iterdir()))

# %%
# The same function again. It finds the newest whole checkpoint, and goes on at step 41. What the
# ten steps after it did is done once more.


class Beginning(Callback):
    """Prints where a training begins."""

    def on_fit_start(self, context: TrainContext) -> None:
        """Print it."""
        print(f"goes on in epoch {context.state.epoch + 1}, after step {context.state.step}")


resumed = train(folder, Beginning())

# %%
# Compared, bit for bit
# ---------------------

ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
assert resumed.history["train_loss"] == whole.history["train_loss"]

import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(6, 3))
for name, trainer, style in (("never stopped", whole, "-"), ("stopped and resumed", resumed, "o")):
    axis.plot(trainer.history["step"], trainer.history["train_loss"], style, label=name)
axis.axvline(50, linestyle=":", color="gray")
axis.annotate("the lights go out", (51, 1.9), fontsize=9)
axis.set(xlabel="step", ylabel="train_loss")
axis.legend(frameon=False)
figure.tight_layout()

print(f"{len(theirs)} tensors and the losses of {len(whole.history)} epochs are the same")

# %%
# Ctrl-C does the same without losing a step: the step in progress is ended, and a last checkpoint
# is written. :doc:`/how-to/stop-and-resume` says what is promised and what is not.
#
# **Next**: :doc:`/how-to/index`, one page a question.
