"""`predict` and `evaluate`: order, short batches, and a model that is left unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from finetunelib.data import TensorBatches, in_memory
from finetunelib.errors import (
    DataError,
    EmptyDataError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.training import Accuracy
from training.tiny import (
    BATCH,
    Untouched,
    cut,
    network,
    plain_network,
    points,
    quiet_trainer,
    random_states,
    ready_batches,
)

INPUTS, TARGETS = points(10)  # two batches of four, and a last one of two


class Items(Dataset[Any]):
    """A dataset of pairs."""

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return INPUTS[index], int(TARGETS[index])


class InputsAlone(Items):
    """A dataset of inputs without targets."""

    def __getitem__(self, index: int) -> Any:
        return INPUTS[index]


class Stream(IterableDataset[Any]):
    """Yields the pairs one by one, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(INPUTS, TARGETS, strict=True))


PAIRS: dict[str, Callable[[], Any]] = {
    "tensors": lambda: (INPUTS, TARGETS),
    "arrays": lambda: (INPUTS.numpy(), TARGETS.numpy()),
    "tensor dataset": lambda: TensorDataset(INPUTS, TARGETS),
    "dataset": Items,
    "in memory": lambda: in_memory(Items(), progress=False),
    "stream": Stream,
    "loader": lambda: DataLoader(Items(), batch_size=3),
    "loader of a stream": lambda: DataLoader(Stream(), batch_size=3),
    "list of batches": lambda: ready_batches((INPUTS, TARGETS)),
    "generator": lambda: iter(ready_batches((INPUTS, TARGETS))),
    "batches of the library": lambda: TensorBatches(INPUTS, TARGETS, batch_size=3),
}
ALONE: dict[str, Callable[[], Any]] = {
    "tensor": lambda: INPUTS,
    "array": INPUTS.numpy,
    "tensor dataset": lambda: TensorDataset(INPUTS),
    "dataset": InputsAlone,
    "loader": lambda: DataLoader(InputsAlone(), batch_size=3),
    "list of batches": lambda: list(cut(INPUTS, 3)),
    "list of singles": lambda: [(rows,) for rows in cut(INPUTS, 3)],
    "generator": lambda: iter(cut(INPUTS, 3)),
}


def expected_outputs() -> Tensor:
    """Return the model's outputs for the inputs in eval mode."""
    with torch.no_grad():
        outputs: Tensor = network().eval()(INPUTS)
    return outputs


def assert_close(outputs: Tensor, expected: Tensor) -> None:
    """Assert equality up to kernels that sum differently for other batch sizes."""
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)


# predict


@pytest.mark.parametrize("kind", PAIRS)
def test_outputs_are_in_the_order_of_the_data(kind: str) -> None:
    """Nothing is shuffled or omitted, and targets are ignored."""
    assert_close(quiet_trainer(network()).predict(PAIRS[kind]()), expected_outputs())


@pytest.mark.parametrize("kind", ALONE)
def test_inputs_without_targets_are_enough(kind: str) -> None:
    """Inputs may be a single tensor or array, or any other type of data."""
    assert_close(quiet_trainer(network()).predict(ALONE[kind]()), expected_outputs())


@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_size_of_a_batch_does_not_matter(size: int) -> None:
    """Short last batches and single samples give the same rows."""
    assert_close(quiet_trainer(network(), batch_size=size).predict(INPUTS), expected_outputs())


def test_outputs_of_one_batch_equal_the_models() -> None:
    """The outputs of a single batch equal the model's, bit for bit."""
    predicted = quiet_trainer(network(), batch_size=10).predict(INPUTS)
    assert torch.equal(predicted, expected_outputs())


def test_outputs_are_on_the_cpu_without_a_graph() -> None:
    """They can be converted to an array directly."""
    predicted = quiet_trainer(network()).predict(INPUTS)
    assert predicted.device == torch.device("cpu")
    assert predicted.numpy().shape == (10, 3)


def test_outputs_share_no_memory_with_the_data() -> None:
    """A model that returns its inputs does not expose the user's tensor."""
    predicted = quiet_trainer(nn.Identity()).predict(INPUTS)
    predicted.zero_()
    assert not torch.equal(INPUTS, predicted)


@pytest.mark.parametrize("kind", ["tensors", "list of batches"])
def test_outputs_of_any_shape_are_concatenated(kind: str) -> None:
    """A sample may have a single output or several dimensions."""
    flat = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    deep = nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (2, 3)))
    assert quiet_trainer(flat).predict(PAIRS[kind]()).shape == (10,)
    assert quiet_trainer(deep).predict(PAIRS[kind]()).shape == (10, 2, 3)


def test_outputs_keep_their_dtype() -> None:
    """Class indices stay integers."""

    class Classes(nn.Module):
        """Returns the index of the largest value."""

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.argmax(1)

    predicted = quiet_trainer(Classes()).predict(INPUTS)
    assert torch.equal(predicted, INPUTS.argmax(1))


def test_probabilities_and_classes_are_one_line_each() -> None:
    """The lines in the documentation work."""
    trainer = quiet_trainer(network())
    outputs = trainer.predict(INPUTS)
    assert torch.equal(outputs.softmax(1).argmax(1), outputs.argmax(1))
    assert outputs.softmax(1).sum(1).tolist() == pytest.approx([1.0] * 10, rel=1e-6)  # float32


class Pooled(nn.Module):
    """Returns one row per batch."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(0, keepdim=True)


class Doubled(nn.Module):
    """Returns two rows per sample."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, inputs])


@pytest.mark.parametrize("model", [Pooled, Doubled])
@pytest.mark.parametrize("kind", ["tensors", "dataset", "loader", "list of batches"])
def test_model_that_changes_the_number_of_rows_is_an_error(kind: str, model: Any) -> None:
    """The number of rows must equal the number of samples."""
    with pytest.raises(DataError):
        quiet_trainer(model()).predict(PAIRS[kind]())


# evaluate


def expected_measures() -> dict[str, float]:
    """Return loss and accuracy over all samples in eval mode."""
    outputs = expected_outputs()
    loss = nn.functional.cross_entropy(outputs.double(), TARGETS)
    return {"loss": float(loss), "accuracy": float((outputs.argmax(1) == TARGETS).float().mean())}


@pytest.mark.parametrize("kind", PAIRS)
def test_metrics_are_means_over_samples(kind: str) -> None:
    """A short last batch is weighted by its samples, for every type of data."""
    measured = quiet_trainer(network()).evaluate(PAIRS[kind]())
    # The losses are float32, to seven digits.
    assert measured == pytest.approx(expected_measures(), rel=1e-6)


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_metrics_do_not_depend_on_the_size_of_a_batch(size: int) -> None:
    """Batches of nine and one give the same means as two of five."""
    measured = quiet_trainer(network(), batch_size=size).evaluate((INPUTS, TARGETS))
    assert measured == pytest.approx(expected_measures(), rel=1e-6)  # float32, as above


def test_metrics_are_plain_floats() -> None:
    """They can be printed, stored and compared."""
    metrics = {"top2": Accuracy(2), "mean": lambda outputs, targets: outputs.mean()}
    measured = quiet_trainer(network(), metrics=metrics).evaluate((INPUTS, TARGETS))
    assert [type(value) for value in measured.values()] == [float] * 3


def test_loss_of_ignored_targets_alone_is_nan() -> None:
    """Without a counted target there is no mean."""
    measured = quiet_trainer(network()).evaluate((INPUTS, torch.full((10,), -100)))
    assert math.isnan(measured["loss"])


def test_batch_of_ignored_targets_alone_does_not_spoil_the_loss() -> None:
    """Its nan is not added to the mean."""
    targets = TARGETS.clone()
    targets[:BATCH] = -100
    measured = quiet_trainer(network()).evaluate((INPUTS, targets))
    outputs = expected_outputs()[BATCH:]
    expected = nn.functional.cross_entropy(outputs, TARGETS[BATCH:])
    assert measured["loss"] == pytest.approx(float(expected), rel=1e-6)  # float32


@pytest.mark.parametrize("samples", [1024, 2500])
def test_many_batches_are_averaged(samples: int) -> None:
    """The mean of thousands of batches includes each of them."""
    inputs, targets = points(samples)
    model = nn.Linear(6, 3)
    one = quiet_trainer(model, batch_size=1).evaluate((inputs, targets))
    whole = quiet_trainer(model, batch_size=samples).evaluate((inputs, targets))
    assert one == pytest.approx(whole, rel=1e-5)  # a float32 mean of so many losses


def test_evaluate_is_what_validation_measures() -> None:
    """The values after the last epoch equal those of the last row."""
    trainer = quiet_trainer(network())
    history = trainer.fit(points(), (INPUTS, TARGETS), epochs=2)
    measured = trainer.evaluate((INPUTS, TARGETS))
    assert measured == {
        "loss": history["val_loss"][-1],
        "accuracy": history["val_accuracy"][-1],
    }


# evaluate and predict


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "predict": lambda trainer, data: trainer.predict(data),
    "evaluate": lambda trainer, data: trainer.evaluate(data),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", PAIRS)
def test_model_and_random_states_are_unchanged(call: str, kind: str) -> None:
    """Weights, buffers, modes, gradients and global generators are unchanged."""
    model = network()
    model.get_submodule("backbone.2").eval()
    untouched = Untouched(model)
    CALLS[call](quiet_trainer(model), PAIRS[kind]())
    untouched.check()


class Raising(nn.Module):
    """Raises at its third batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.calls = 0

    def forward(self, inputs: Tensor) -> Any:
        self.calls += 1
        torch.rand(1)
        if self.calls == 3:
            raise KeyError("third")
        return self.inner(inputs)


@pytest.mark.parametrize("call", CALLS)
def test_model_and_random_states_are_restored_after_an_error(call: str) -> None:
    """They are also restored after an error in the middle of the data."""
    model = Raising()
    untouched = Untouched(model)
    with pytest.raises(KeyError, match="third"):
        CALLS[call](quiet_trainer(model), (INPUTS, TARGETS))
    untouched.check()


def test_loader_that_shuffles_does_not_change_the_global_generator() -> None:
    """The random states are restored."""
    before = random_states()
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4, shuffle=True)
    quiet_trainer(network()).evaluate(loader)
    assert random_states() == before


@pytest.mark.parametrize("call", CALLS)
def test_model_runs_in_eval_mode_without_gradients(call: str) -> None:
    """Dropout is off, running statistics are used, and no graph is recorded."""
    seen: set[tuple[bool, bool]] = set()

    class Look(nn.Module):
        """Records the mode, and whether a graph is recorded."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = plain_network()

        def forward(self, inputs: Tensor) -> Any:
            outputs = self.inner(inputs)
            seen.add((self.training, outputs.requires_grad))
            return outputs

    CALLS[call](quiet_trainer(Look()), (INPUTS, TARGETS))
    assert seen == {(False, False)}


@pytest.mark.parametrize("call", CALLS)
def test_optimizer_is_not_built_for_it(call: str) -> None:
    """A model without trainable parameters can be evaluated."""
    model = network()
    model.requires_grad_(False)
    trainer = quiet_trainer(model)
    CALLS[call](trainer, (INPUTS, TARGETS))
    assert trainer.optimizer is None


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "data", [[], (INPUTS[:0], TARGETS[:0]), iter(())], ids=["list", "tensors", "iterator"]
)
def test_data_without_a_sample_is_an_error_that_names_it(call: str, data: Any) -> None:
    """Empty data raises an error instead of returning nan."""
    with pytest.raises(EmptyDataError):
        CALLS[call](quiet_trainer(network()), data)


@pytest.mark.parametrize("call", CALLS)
def test_generator_of_wrong_inputs_is_an_error_of_the_library(call: str) -> None:
    """Data that can be read only once is checked while it is read."""
    batches = iter([(INPUTS[:, :5], TARGETS)])
    with pytest.raises(InvalidInputError, match="`data`"):
        CALLS[call](quiet_trainer(nn.Linear(6, 3)), batches)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("data", ["mnist", 3, None], ids=repr)
def test_data_of_an_unknown_type_is_an_error_that_names_it(call: str, data: Any) -> None:
    """The message contains the argument and the type of its value."""
    with pytest.raises(InvalidTypeError) as caught:
        CALLS[call](quiet_trainer(network()), data)
    assert "`data`" in str(caught.value)
    assert type(data).__name__ in str(caught.value)


def test_evaluation_of_inputs_alone_is_an_error_that_says_what_is_missing() -> None:
    """The loss needs targets."""
    with pytest.raises(InvalidTypeError, match="targets"):
        quiet_trainer(network()).evaluate(INPUTS)
