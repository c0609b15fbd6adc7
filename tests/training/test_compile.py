"""`compile=True` runs a private compiled form that shares the parameters."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch

from finetunelib import freeze_and_replace_head
from finetunelib.training import Callback, TrainContext
from training.tiny import network, plain_network, points, quiet_trainer, same_weights, weights_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("g++") or shutil.which("c++")),
        reason="torch.compile needs a C++ compiler, and there is no `g++` or `c++`",
    ),
]


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    """Delete compiled code. Tests do not depend on each other."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# The compiler imports parts of torch that use what newer Pythons deprecate.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_training_is_the_eager_one() -> None:
    """Weights, losses and predictions agree, and the user's model is not replaced."""
    model, eager = plain_network(), plain_network()
    seen = []

    class Models(Callback):
        """Keeps the model that a callback gets."""

        def on_step_end(self, context: TrainContext) -> None:
            seen.append(context.model)

    trainer = quiet_trainer(model, lr=0.1, compile=True, callbacks=[Models()])
    reference = quiet_trainer(eager, lr=0.1)
    history = trainer.fit(points(24), points(8), epochs=2)
    expected = reference.fit(points(24), points(8), epochs=2)

    assert trainer.model is model
    assert all(found is model for found in seen)
    assert list(model.state_dict()) == list(plain_network().state_dict())
    assert type(model) is type(eager)
    # Compiled kernels fuse and round differently: float32 to six digits after twelve steps.
    for name, tensor in weights_of(model).items():
        torch.testing.assert_close(tensor, eager.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert history["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-4)
    inputs, _ = points(8)
    torch.testing.assert_close(
        trainer.predict(inputs), reference.predict(inputs), rtol=1e-4, atol=1e-5
    )
    assert not same_weights(model, plain_network())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_training_keeps_frozen_bits() -> None:
    """The frozen backbone does not change, including the statistics of BatchNorm."""
    model = freeze_and_replace_head(network(), num_classes=3)
    before = weights_of(model)
    quiet_trainer(model, lr=0.1, compile=True).fit(points(24), epochs=1)
    changed = {name for name, t in weights_of(model).items() if not torch.equal(t, before[name])}
    assert changed == {"head.weight", "head.bias"}
