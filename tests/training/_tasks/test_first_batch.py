"""Mistakes raise an error before the first step, and nothing is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from finetunelib import Trainer, build_mlp
from finetunelib.data import TensorBatches
from finetunelib.errors import (
    DataError,
    EmptyDataError,
    FinetuneLibError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTargetError,
    InvalidTypeError,
)
from training.tiny import (
    Untouched,
    network,
    points,
    quiet_trainer,
    ready_batches,
)

INPUTS, TARGETS = points(12)


def image_network() -> nn.Module:
    """Return a small convolutional network with BatchNorm, for images with three channels."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )


def refused_fit(
    error: type[Exception],
    train: Any,
    val: Any = None,
    *values: str,
    model: nn.Module | None = None,
    options: dict[str, Any] | None = None,
    **limits: Any,
) -> None:
    """Assert that `fit` raises with these values in the message and changes nothing."""
    model = network() if model is None else model
    trainer = quiet_trainer(model, **(options or {}))
    untouched = Untouched(model)
    with pytest.raises(error) as caught:
        trainer.fit(train, val, **(limits or {"epochs": 1}))
    for value in values:
        assert value in str(caught.value)
    untouched.check()
    assert trainer.state.step == 0
    assert len(trainer.history) == 0


def refused_data(
    error: type[Exception],
    data: Any,
    *values: str,
    model: nn.Module | None = None,
    good: Any = (INPUTS, TARGETS),
    **options: Any,
) -> None:
    """Assert that data raises an error as `train`, as `val` and in `evaluate`, with its name."""
    model = network() if model is None else model
    refused_fit(error, data, None, "`train`", *values, model=model, options=options)
    trainer = quiet_trainer(model, **options)
    untouched = Untouched(model)
    with pytest.raises(error) as caught:
        trainer.fit(good, data, epochs=1)
    assert "`val`" in str(caught.value)
    untouched.check()
    with pytest.raises(error) as caught:
        trainer.evaluate(data)
    for value in ("`data`", *values):
        assert value in str(caught.value)
    untouched.check()


# Inputs


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
def test_integer_inputs_are_an_error_that_names_the_dtype(dtype: torch.dtype) -> None:
    """A linear layer does not accept bytes; the message contains the dtype."""
    refused_fit(InvalidInputError, ((INPUTS * 9).to(dtype), TARGETS), None, "`train`", str(dtype))


def test_wrong_inputs_are_an_error_in_every_argument() -> None:
    """The message says whether `train`, `val` or `data` is wrong."""
    model = nn.Linear(6, 3)
    calls: list[tuple[str, Callable[[Trainer, Any], object]]] = [
        ("`train`", lambda trainer, data: trainer.fit(data, epochs=1)),
        ("`val`", lambda trainer, data: trainer.fit((INPUTS, TARGETS), data, epochs=1)),
        ("`data`", lambda trainer, data: trainer.evaluate(data)),
        ("`data`", lambda trainer, data: trainer.predict(data)),
    ]
    for name, call in calls:
        untouched = Untouched(model)
        with pytest.raises(InvalidInputError) as caught:
            call(quiet_trainer(model), (INPUTS[:, :5], TARGETS))
        assert name in str(caught.value)
        assert "(4, 5)" in str(caught.value)
        untouched.check()


def test_inputs_of_the_wrong_width_are_an_error_that_names_both_widths() -> None:
    """The message contains the width and that of the first layer."""
    refused_fit(
        InvalidInputError,
        (INPUTS[:, :5], TARGETS),
        None,
        "(4, 5)",
        "in_features=6",
        model=nn.Linear(6, 3),
    )


def test_inputs_of_the_wrong_width_for_an_mlp_are_an_error_that_names_both() -> None:
    """The message is that of the MLP's own check."""
    refused_fit(InvalidInputError, (INPUTS[:, :5], TARGETS), None, "(4, 5)", "6")


def test_images_of_the_wrong_number_of_channels_are_an_error_that_names_both() -> None:
    """Gray images raise an error, and BatchNorm's statistics are unchanged."""
    model = image_network()
    model(torch.zeros(2, 3, 5, 5))
    refused_fit(
        InvalidInputError,
        (torch.zeros(4, 1, 5, 5), torch.zeros(4).long()),
        None,
        "(4, 1, 5, 5)",
        "Conv2d(3, 4",
        model=model,
    )


def test_inputs_of_double_precision_are_an_error_that_names_the_dtype() -> None:
    """Numpy's default dtype differs from that of the model."""
    array = INPUTS.double().numpy()
    refused_fit(
        InvalidInputError,
        (array, TARGETS.numpy()),
        None,
        "torch.float64",
        model=nn.Linear(6, 3),
    )


def test_index_outside_an_embedding_is_an_error_that_names_the_data() -> None:
    """A token outside the vocabulary is an error of the inputs."""
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 3))
    refused_fit(
        InvalidInputError, (torch.full((4, 2), 10), TARGETS[:4]), None, "`train`", model=model
    )


def test_index_outside_an_embedding_bag_is_reported_as_such() -> None:
    """The message for a model of indices does not ask for floating point."""
    model = nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 3))
    with pytest.raises(InvalidInputError, match="`train`") as caught:
        quiet_trainer(model).fit((torch.full((12, 2), 10), TARGETS), epochs=1)
    assert "floating point" not in str(caught.value)


def test_inputs_of_a_model_without_layers_are_an_error_that_shows_their_shape() -> None:
    """Without a first layer, the message contains PyTorch's reason."""

    class Product(nn.Module):
        """Multiplies by a matrix."""

        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(6, 3))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs @ self.matrix

    refused_fit(
        InvalidInputError, (INPUTS[:, :5], TARGETS), None, "`train`", "(4, 5)", model=Product()
    )


def test_wrong_inputs_by_name_are_an_error_that_shows_every_shape() -> None:
    """The message contains each shape, and the model's own reason."""
    batch = {"input": INPUTS, "other": INPUTS[:, :2], "labels": TARGETS}
    refused_fit(
        InvalidInputError, [batch], None, "input of shape (12, 6)", "other of shape (12, 2)"
    )


@pytest.mark.parametrize("model", [network(), nn.Linear(6, 3)], ids=["MLP", "Linear"])
def test_inputs_that_are_not_a_tensor_are_an_error_that_describes_them(model: nn.Module) -> None:
    """The message says that the inputs are a list."""
    refused_fit(
        InvalidInputError, [([1.0, 2.0], TARGETS[:2])], None, "list of length 2", model=model
    )


def test_inputs_that_a_model_asserts_against_are_an_error_that_names_the_data() -> None:
    """Torchvision's transformers assert the size of an image."""

    class Asserting(nn.Module):
        """Accepts samples of six values."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Any:
            torch._assert(inputs.shape[1] == 6, "wrong width")
            return self.inner(inputs)

    refused_fit(
        InvalidInputError,
        (INPUTS[:, :5], TARGETS),
        None,
        "`train`",
        "wrong width",
        model=Asserting(),
    )


class FromBytes(nn.Module):
    """Accepts bytes and scales them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Any:
        return self.inner(inputs.float() / 255)


class LateEmbedding(nn.Module):
    """Has an embedding that is registered after its linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.embedding = nn.Embedding(10, 4)

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.embedding(inputs).mean(1))


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        (FromBytes(), torch.uint8),
        (LateEmbedding(), torch.int64),
        (nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(24, 3)), torch.int64),
        (nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 3)), torch.int64),
    ],
    ids=["scales bytes itself", "late embedding", "embedding", "bag of embeddings"],
)
def test_model_that_accepts_integers_is_trained_on_them(
    model: nn.Module, dtype: torch.dtype
) -> None:
    """Integer inputs are valid if the model accepts them."""
    inputs = torch.arange(72).remainder(10).view(12, 6).to(dtype)
    assert len(quiet_trainer(model).fit((inputs, TARGETS), epochs=1)) == 1


# Targets of the default loss


@pytest.mark.parametrize(
    ("targets", "values"),
    [
        (TARGETS + 1, ["3"]),
        (TARGETS - 1, ["-1"]),
        (TARGETS.float(), ["torch.float32", "torch.int64"]),
        (TARGETS.int(), ["torch.int32", "torch.int64"]),
        (TARGETS.to(torch.uint8), ["torch.uint8", "torch.int64"]),
        (nn.functional.one_hot(TARGETS, 3), ["(4, 3)", "argmax"]),
        (nn.functional.one_hot(TARGETS, 3).float(), ["torch.float32", "argmax"]),
        (TARGETS.unsqueeze(1), ["(4, 1)"]),
    ],
    ids=["too large", "negative", "float", "int32", "uint8", "one-hot", "one-hot float", "(n, 1)"],
)
def test_targets_that_are_not_class_indices_are_an_error(
    targets: Tensor, values: list[str]
) -> None:
    """The message contains the dtype, shape or range, and the fix."""
    refused_data(InvalidTargetError, (INPUTS, targets), *values)


def test_single_wrong_target_in_a_late_batch_is_found_before_training() -> None:
    """All targets in memory are checked, not only those of the first batch."""
    targets = TARGETS.clone()
    targets[-1] = 7
    refused_data(InvalidTargetError, (INPUTS, targets), "7")


def test_wrong_target_in_a_late_batch_of_a_dataset_is_an_error_that_names_the_classes() -> None:
    """In a dataset it is found when its batch is read."""
    targets = TARGETS.clone()
    targets[-1] = 7
    with pytest.raises(InvalidTargetError, match="0 to 2"):
        quiet_trainer(network()).fit(ready_batches((INPUTS, targets)), epochs=1)


def test_targets_that_the_default_loss_ignores_are_accepted() -> None:
    """Targets of -100 are valid."""
    targets = TARGETS.clone()
    targets[3] = -100
    assert len(quiet_trainer(network()).fit((INPUTS, targets), epochs=1)) == 1


def test_model_of_one_dimension_is_an_error_of_the_default_loss() -> None:
    """Outputs `(batch,)` are not logits."""
    model = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    refused_fit(InvalidTargetError, (INPUTS, TARGETS), None, "(4,)", model=model)


def test_inputs_and_targets_swapped_are_an_error() -> None:
    """The model does not accept the targets as inputs."""
    refused_fit(InvalidInputError, (TARGETS, INPUTS), None, "`train`", "torch.int64")


def test_inputs_and_targets_of_different_length_are_an_error_that_names_both() -> None:
    """The message contains both lengths."""
    refused_fit(DataError, (INPUTS, TARGETS[:11]), None, "(12, 6)", "(11,)")


def test_inputs_and_targets_of_different_length_in_a_batch_are_an_error_that_names_both() -> None:
    """Ready batches are checked too."""
    refused_fit(InvalidTargetError, [(INPUTS, TARGETS[:11])], None, "(12,", "(11,)")


def test_targets_that_are_not_a_tensor_are_an_error_that_describes_them() -> None:
    """A list of numbers in a ready batch is not converted silently."""
    refused_fit(
        InvalidTypeError, [(INPUTS, TARGETS.tolist())], None, "`train`", "list of length 12"
    )


# Losses


def swapped(outputs: Tensor, targets: Tensor) -> Tensor:
    """Call cross-entropy with its arguments swapped."""
    return nn.functional.cross_entropy(targets, outputs)


def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return one loss per sample."""
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def test_loss_with_its_arguments_swapped_is_an_error_that_shows_both_shapes() -> None:
    """The message contains both shapes and the order of the arguments."""
    refused_fit(
        InvalidTargetError,
        (INPUTS, TARGETS),
        None,
        "`loss_fn(outputs, targets)`",
        "(4, 3)",
        "(4,)",
        options={"loss_fn": swapped},
    )


def test_target_outside_the_classes_of_a_custom_loss_is_an_error_that_names_them() -> None:
    """An explicit nn.CrossEntropyLoss is checked on the first batch too."""
    refused_fit(
        InvalidTargetError,
        (INPUTS, torch.full((12,), 3)),
        None,
        "0 to 2",
        options={"loss_fn": nn.CrossEntropyLoss()},
    )


def test_loss_that_is_not_a_scalar_is_an_error_that_shows_its_shape() -> None:
    """A loss per sample must be reduced."""
    refused_fit(
        InvalidArgumentError,
        (INPUTS, TARGETS),
        None,
        "`loss_fn`",
        "(4,)",
        options={"loss_fn": per_sample},
    )


def test_loss_that_is_not_a_tensor_is_an_error_that_names_its_type() -> None:
    """A Python number has no gradient."""
    refused_fit(
        InvalidArgumentError,
        (INPUTS, TARGETS),
        None,
        "`loss_fn`",
        "float",
        options={"loss_fn": lambda outputs, targets: 0.5},
    )


@pytest.mark.parametrize(
    "loss_fn", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss()], ids=str
)
def test_regression_of_two_shapes_is_an_error_that_shows_both(loss_fn: nn.Module) -> None:
    """(n,) and (n, 1) would be broadcast."""
    refused_data(
        InvalidTargetError,
        (INPUTS, INPUTS.sum(1)),
        "(4,)",
        "(4, 1)",
        model=nn.Linear(6, 1),
        good=(INPUTS, INPUTS.sum(1, keepdim=True)),
        loss_fn=loss_fn,
    )


def test_multi_label_of_two_shapes_is_an_error_that_shows_both() -> None:
    """BCEWithLogitsLoss does not accept class indices."""
    refused_fit(
        InvalidTargetError,
        (INPUTS, TARGETS.float()),
        None,
        "(4,)",
        "(4, 3)",
        options={"loss_fn": nn.BCEWithLogitsLoss()},
    )


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, nn.MSELoss])
def test_loss_that_does_not_average_is_an_error_that_names_its_reduction(
    loss: Any, reduction: str
) -> None:
    """With a sum, the learning rate would depend on the batch size."""
    with pytest.raises(InvalidArgumentError) as caught:
        quiet_trainer(network(), loss_fn=loss(reduction=reduction))
    assert "`loss_fn`" in str(caught.value)
    assert repr(reduction) in str(caught.value)


def test_class_of_a_loss_is_an_error_that_names_it() -> None:
    """`nn.MSELoss` is passed instead of `nn.MSELoss()`."""
    with pytest.raises(InvalidTypeError) as caught:
        quiet_trainer(network(), loss_fn=nn.MSELoss)
    assert "`loss_fn`" in str(caught.value)
    assert "MSELoss" in str(caught.value)


@pytest.mark.parametrize("loss_fn", ["mse", 3], ids=repr)
def test_loss_that_cannot_be_called_is_an_error_that_shows_it(loss_fn: Any) -> None:
    """A string is not a loss."""
    with pytest.raises(InvalidTypeError) as caught:
        quiet_trainer(network(), loss_fn=loss_fn)
    assert "`loss_fn`" in str(caught.value)
    assert repr(loss_fn) in str(caught.value)


# Arguments of the Trainer


@pytest.mark.parametrize(
    "model", [nn.Linear, build_mlp, "resnet", None], ids=["class", "function", "text", "None"]
)
def test_value_that_is_not_a_model_is_an_error_that_shows_it(model: Any) -> None:
    """A class or a function is not a module."""
    with pytest.raises(InvalidTypeError) as caught:
        quiet_trainer(model)
    assert "`model`" in str(caught.value)
    assert repr(model) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -4),
        ("num_workers", -1),
        ("gradient_accumulation_steps", 0),
        ("gradient_accumulation_steps", -2),
    ],
)
def test_number_below_its_least_value_is_an_error_that_names_both(name: str, value: int) -> None:
    """The message contains the argument and its value."""
    with pytest.raises(InvalidArgumentError) as caught:
        quiet_trainer(network(), **{name: value})
    assert f"`{name}`" in str(caught.value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("name", ["batch_size", "num_workers", "gradient_accumulation_steps"])
@pytest.mark.parametrize("value", [1.5, "4", None], ids=repr)
def test_number_that_is_not_an_integer_is_an_error_that_names_both(name: str, value: Any) -> None:
    """A float or a string raises an error when the Trainer is created."""
    with pytest.raises(FinetuneLibError) as caught:
        quiet_trainer(network(), **{name: value})
    assert f"`{name}`" in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", ["lr", "max_grad_norm"])
def test_rate_that_is_not_a_number_is_an_error_that_names_both(name: str) -> None:
    """A string, as from a configuration file, raises the library's error."""
    with pytest.raises(FinetuneLibError) as caught:
        quiet_trainer(network(), **{name: "0.1"})
    assert f"`{name}`" in str(caught.value)
    assert "0.1" in str(caught.value)


@pytest.mark.parametrize("seed", [1.5, "a", None], ids=repr)
def test_seed_that_is_not_a_whole_number_is_an_error_that_shows_it(seed: Any) -> None:
    """Other values are not converted silently."""
    with pytest.raises(FinetuneLibError) as caught:
        quiet_trainer(network(), seed=seed)
    assert "`seed`" in str(caught.value)
    assert repr(seed) in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "cpu:x"], ids=repr)
def test_unknown_device_is_an_error_that_shows_it(device: str) -> None:
    """The device is missing or does not exist."""
    with pytest.raises(InvalidArgumentError) as caught:
        quiet_trainer(network(), device=device)
    assert "`device`" in str(caught.value)
    assert repr(device) in str(caught.value)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=repr)
def test_device_may_be_a_name_or_an_object(device: Any) -> None:
    """Both select the same device."""
    assert quiet_trainer(network(), device=device).device == torch.device("cpu")


def test_device_is_an_accelerator_if_there_is_one() -> None:
    """`"auto"` is the current accelerator, or the CPU without one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert quiet_trainer(network()).device == (accelerator or torch.device("cpu"))


# Limits of a fit


@pytest.mark.parametrize("name", ["epochs", "max_steps"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "3"], ids=repr)
def test_limit_that_is_not_a_count_is_an_error_that_names_both(name: str, value: Any) -> None:
    """A limit is a whole number of at least 1, and not `True`."""
    refused_fit(
        InvalidArgumentError, (INPUTS, TARGETS), None, f"`{name}`", repr(value), **{name: value}
    )


def test_no_limit_is_an_error_that_names_both() -> None:
    """A run without a limit is an error."""
    refused_fit(
        InvalidArgumentError, (INPUTS, TARGETS), None, "`epochs`", "`max_steps`", epochs=None
    )


# Data of unknown types


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("mnist", "str"),
        (3, "int"),
        ({"inputs": INPUTS, "targets": TARGETS}, "dict"),
        ((INPUTS, TARGETS, TARGETS), "Tensor, Tensor, Tensor"),
        ((INPUTS, TARGETS.tolist()), "Tensor, list"),
        ((INPUTS,), "Tensor"),
        (None, "NoneType"),
    ],
    ids=["text", "number", "dict", "triple", "list of targets", "inputs alone", "None"],
)
def test_data_of_an_unknown_type_is_an_error_that_names_it(data: Any, value: str) -> None:
    """The message contains the argument and the type of its value."""
    refused_fit(InvalidTypeError, data, None, "`train`", value)


@pytest.mark.parametrize("data", [INPUTS, INPUTS.numpy()], ids=["tensor", "array"])
def test_inputs_without_targets_are_an_error_that_says_so(data: Any) -> None:
    """A single tensor is valid for `predict` only."""
    refused_fit(InvalidTypeError, data, None, "`train`", "targets")


class NoSamples(Dataset[Any]):
    """A dataset of length 0."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


class NoStream(IterableDataset[Any]):
    """An iterable dataset without samples."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize(
    "data",
    [
        [],
        NoSamples(),
        NoStream(),
        (INPUTS[:0], TARGETS[:0]),
        DataLoader(TensorDataset(INPUTS[:3], TARGETS[:3]), batch_size=4, drop_last=True),
        iter(()),
    ],
    ids=["list", "dataset", "stream", "tensors", "loader", "iterator"],
)
def test_data_without_a_sample_is_an_error(data: Any) -> None:
    """Empty training data raises an error before anything is changed."""
    refused_fit(EmptyDataError, data)


@pytest.mark.parametrize(
    "data",
    [[], NoSamples(), NoStream(), (INPUTS[:0], TARGETS[:0])],
    ids=["list", "dataset", "stream", "tensors"],
)
def test_validation_data_without_a_sample_is_an_error(data: Any) -> None:
    """Empty validation data raises an error before the first step."""
    refused_fit(EmptyDataError, (INPUTS, TARGETS), data)


def test_exhausted_generator_is_an_error_that_names_the_argument() -> None:
    """A generator is empty after it has been read once."""
    batches = iter(ready_batches((INPUTS, TARGETS)))
    list(batches)
    refused_fit(EmptyDataError, batches, None, "`train`")


def test_exhausted_generator_of_validation_is_an_error_that_names_the_argument() -> None:
    """An empty generator has no validation loss."""
    batches = iter(ready_batches((INPUTS, TARGETS)))
    list(batches)
    with pytest.raises(EmptyDataError, match="`val`"):
        quiet_trainer(network()).fit((INPUTS, TARGETS), batches, epochs=1)


@pytest.mark.parametrize(
    ("which", "limits"),
    [("train", {"epochs": 2}), ("val", {"epochs": 2}), ("val", {"max_steps": 2})],
    ids=["train", "val", "val-max_steps"],
)
def test_iterator_for_more_than_one_epoch_is_an_error_that_names_it(
    which: str, limits: dict[str, Any]
) -> None:
    """It would be empty in the second epoch."""
    data: dict[str, Any] = {"train": (INPUTS, TARGETS), "val": (INPUTS, TARGETS)}
    data[which] = iter(ready_batches((INPUTS, TARGETS)))
    refused_fit(
        InvalidArgumentError, data["train"], data["val"], f"`{which}`", "`epochs`", **limits
    )


class Once:
    """Returns the same iterator each time."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.iterator = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        return self.iterator


def test_validation_that_can_be_read_only_once_is_measured_completely_or_not_at_all() -> None:
    """The batch that was read for the check is measured too."""
    val = Once(ready_batches((INPUTS, TARGETS)))
    weight = nn.functional.cross_entropy
    samples: list[int] = []

    def count(outputs: Tensor, targets: Tensor) -> Tensor:
        samples.append(len(targets))
        return weight(outputs, targets)

    with contextlib.suppress(FinetuneLibError):
        quiet_trainer(network(), metrics={"count": count}).fit((INPUTS, TARGETS), val, epochs=1)
    # Either nothing was done, or both the training and the validation saw all twelve, after the
    # check of four.
    assert sum(samples) in (0, 4 + 24)


def test_source_that_can_be_read_only_once_is_an_error_for_two_epochs() -> None:
    """An iterable that returns the same iterator is treated as an iterator."""
    with pytest.raises(InvalidArgumentError, match="`train`"):
        quiet_trainer(network()).fit(Once(ready_batches((INPUTS, TARGETS))), epochs=2)


def test_loader_of_single_tensors_is_an_error_that_describes_a_batch() -> None:
    """A DataLoader of inputs only yields lists of length one."""
    refused_fit(
        InvalidTypeError, DataLoader(TensorDataset(INPUTS), batch_size=4), None, "list of length 1"
    )


def test_loader_of_bare_tensors_is_an_error_that_describes_a_batch() -> None:
    """A DataLoader of a tensor yields tensors."""
    loader: DataLoader[Any] = DataLoader(INPUTS, batch_size=4)  # type: ignore[arg-type]
    refused_fit(InvalidTypeError, loader, None, "tensor of shape (4, 6)")


# Validation data


@pytest.mark.parametrize(
    "val",
    [
        (INPUTS[:, :5], TARGETS),
        (INPUTS, TARGETS + 3),
        [(INPUTS, TARGETS.float())],
        TensorDataset(INPUTS, TARGETS + 3),
        DataLoader(TensorDataset(INPUTS, TARGETS + 3)),
        INPUTS,
        "val",
    ],
    ids=["width", "classes", "batches", "dataset", "loader", "tensor", "text"],
)
def test_wrong_validation_data_is_found_before_the_first_step(val: Any) -> None:
    """The error is raised before any training."""
    refused_fit(FinetuneLibError, (INPUTS, TARGETS), val, "`val`")


# Side effects of the checks


class Calls(list[bool]):
    """A list that the check does not restore, because it is of a class of its own."""


class Counting(nn.Module):
    """Counts its forward passes, by mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.calls = Calls()

    def forward(self, inputs: Tensor) -> Any:
        self.calls.append(self.training)
        return self.inner(inputs)


def test_check_runs_the_model_in_eval_mode() -> None:
    """A dry run updates no statistics and uses no dropout."""
    model = Counting()
    quiet_trainer(model).fit((INPUTS, TARGETS), epochs=1)
    assert model.calls == [False, True, True, True]


def test_check_runs_once_per_fit() -> None:
    """Later epochs have no dry run."""
    model = Counting()
    quiet_trainer(model).fit((INPUTS, TARGETS), (INPUTS[:4], TARGETS[:4]), epochs=3)
    # The dry runs of both data, and the three epochs' validations.
    assert model.calls.count(False) == 2 + 3


def test_first_batch_is_trained_on_after_its_check() -> None:
    """The batch that was read for the check is also trained on."""
    history = quiet_trainer(network(), lr=0.0).fit(iter(ready_batches((INPUTS, TARGETS))), epochs=1)
    assert history["step"] == [3]


def test_batches_of_the_library_may_be_passed_as_data() -> None:
    """`TensorBatches` keep their own batch size."""
    batches: Any = TensorBatches(INPUTS, TARGETS, batch_size=6)
    assert quiet_trainer(network()).fit(batches, epochs=1)["step"] == [2]


def test_arrays_of_the_wrong_dtype_are_reported_with_the_torch_dtype() -> None:
    """For numpy's int32 targets the message contains the required dtype."""
    refused_fit(
        InvalidTargetError, (INPUTS.numpy(), TARGETS.numpy().astype(np.int32)), None, "torch.int64"
    )
