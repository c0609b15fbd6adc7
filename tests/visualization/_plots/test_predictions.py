"""`plot_predictions`: which samples are drawn, how, and what is refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor, nn

from finetunelib import build_mlp
from finetunelib.errors import (
    EmptyDataError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.visualization import plot_predictions
from finetunelib.visualization._plots.style import LIGHT
from support_models import Function
from visualization._plots.plotting import Answers, answering, texts


def cells(figure: Figure) -> list[tuple[str, str]]:
    """Return the two lines over each image."""
    return [(axes.get_title("left"), axes.texts[0].get_text()) for axes in figure.axes]


def image(figure: Figure, number: int = 0) -> Any:
    """Return the values of an image as they are drawn."""
    return np.asarray(figure.axes[number].get_images()[0].get_array())


def always(classes: int = 2) -> nn.Module:
    """Return a model that says class 0 to everything."""
    return Function(lambda inputs: torch.eye(classes)[:1].expand(len(inputs), -1) * 3)


def labelled(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images with a label that `always` gets wrong."""
    return images, torch.ones(len(images), dtype=torch.int64)


def test_most_confident_mistakes_come_first() -> None:
    """Each image has prediction, confidence, label and place; right ones are left out."""
    data = answering([1, 2, 0, 1], [0, 2, 1, 2], [0.6, 0.99, 0.9, 0.7])
    figure = plot_predictions(Answers(3), data, count=3)
    assert cells(figure) == [
        ("✗ 0  90%", "label 1  #2"),
        ("✗ 1  70%", "label 2  #3"),
        ("✗ 1  60%", "label 0  #0"),
    ]


def test_least_sure_right_ones_fill_up_and_are_marked() -> None:
    """Where mistakes are few, a tick and another color tell the right ones from them."""
    data = answering([1, 2, 0, 1], [0, 2, 0, 1], [0.6, 0.99, 0.7, 0.8])
    figure = plot_predictions(Answers(3), data, count=3)
    assert cells(figure) == [
        ("✗ 1  60%", "label 0  #0"),
        ("✓ 0  70%", "label 0  #2"),
        ("✓ 1  80%", "label 1  #3"),
    ]
    frames = [to_hex(axes.spines["top"].get_edgecolor()) for axes in figure.axes]
    assert frames == [LIGHT.series[1], LIGHT.series[0], LIGHT.series[0]]


def test_headline_counts_all_mistakes_and_tells_the_order() -> None:
    """The numbers are those of the whole data, and not of what is drawn."""
    wrong = plot_predictions(Answers(3), answering([1, 1, 1, 0], [0, 0, 0, 0]), count=2)
    assert "3 of 4 samples; the surest mistakes first" in texts(wrong)
    assert "75% wrong" in [text.strip() for text in texts(wrong)]
    some = plot_predictions(Answers(3), answering([1, 0], [0, 0]))
    assert "1 of 2 samples; all of them, then the least sure" in texts(some)
    none = plot_predictions(Answers(3), answering([0, 0], [0, 0]))
    assert "0 of 2 samples; the least sure first" in texts(none)


def test_data_with_fewer_samples_than_places_has_fewer_images() -> None:
    """No place is left empty."""
    assert len(plot_predictions(Answers(3), answering([0, 1], [0, 1]), count=9).axes) == 2


def test_choice_does_not_depend_on_the_batches() -> None:
    """The best of each batch are weighed against each other."""
    generator = torch.Generator().manual_seed(0)
    said = torch.randint(0, 3, (50,), generator=generator).tolist()
    labels = torch.randint(0, 3, (50,), generator=generator).tolist()
    sure = (0.4 + 0.5 * torch.rand(50, generator=generator)).tolist()
    data = answering(said, labels, sure)
    one = plot_predictions(Answers(3), data, count=45, batch_size=50)
    many = plot_predictions(Answers(3), data, count=45, batch_size=7)
    assert cells(one) == cells(many)
    expected = sorted((n for n in range(50) if said[n] != labels[n]), key=lambda n: -sure[n])
    shown = [int(text.split("#")[1]) for _, text in cells(many)]
    assert shown[: len(expected)] == expected


def test_only_shown_images_are_kept_in_memory() -> None:
    """A stream of any length is drawn from with the memory of a few batches."""
    memory: list[weakref.ref[Any]] = []
    most = 0

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal most
        for _ in range(20):
            # One of each batch will be shown.
            images, labels = answering([1] * 8, [0] * 8, [0.9] + [0.5] * 7)
            # A tensor of an array keeps it alive, and so does every view of the tensor.
            array = images.numpy().copy()
            memory.append(weakref.ref(array))
            yield torch.from_numpy(array), labels
            del array
            gc.collect()
            most = max(most, sum(array() is not None for array in memory))

    plot_predictions(Answers(3), stream(), count=20)
    assert len(memory) == 20
    # The first batch was looked at before the pass, and one more may be in hand.
    assert most <= 3


def test_ignored_targets_are_passed_over_and_keep_their_place() -> None:
    """Samples without a label are not drawn, and the numbers of the others stay."""
    figure = plot_predictions(Answers(3), answering([0, 1, 2], [-100, 0, 2]))
    assert [text for _, text in cells(figure)] == ["label 0  #1", "label 2  #2"]


def test_classes_have_their_names() -> None:
    """Names are shown as they are, long ones cut."""
    figure = plot_predictions(
        Answers(2), answering([1], [0]), class_names=["$cat$", "a dog of a very rare kind"]
    )
    assert cells(figure) == [("✗ a dog of a very r…  90%", "label $cat$  #0")]


def test_model_that_ends_in_a_softmax_keeps_its_confidence() -> None:
    """A second softmax would make every model look unsure."""
    model = Function(lambda inputs: Answers(3)(inputs).exp())
    figure = plot_predictions(model, answering([1], [0], [0.97]))
    assert cells(figure)[0][0] == "✗ 1  97%"


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((5, 4), (5, 4)),
        ((1, 5, 4), (5, 4)),
        ((3, 5, 4), (5, 4, 3)),
        ((5, 4, 3), (5, 4, 3)),
        ((5, 4, 1), (5, 4)),
    ],
)
def test_gray_and_color_images_are_drawn_in_either_order(
    shape: tuple[int, ...], drawn: tuple[int, ...]
) -> None:
    """Channels may come first or last, or not at all."""
    values = torch.rand(1, *shape)
    shown = image(plot_predictions(always(), labelled(values)))
    assert shown.shape == drawn
    assert sorted(shown.flatten().tolist()) == sorted(values.flatten().tolist())


def test_color_channels_stay_in_their_order() -> None:
    """A red image is drawn red."""
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1
    assert image(plot_predictions(always(), labelled(red)))[0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        (torch.tensor([0, 51, 255], dtype=torch.uint8), [0, 0.2, 1]),
        (torch.tensor([0.25, 0.5, 0.75]), [0.25, 0.5, 0.75]),
        (torch.tensor([-2.0, 0.0, 2.0]), [0, 0.5, 1]),
        (torch.tensor([0.0, 51.0, 255.0]), [0, 0.2, 1]),
        (torch.tensor([7.0, 7.0, 7.0]), [0.5, 0.5, 0.5]),
        (torch.tensor([0.5, float("nan"), 1.0]), [0.5, 0, 1]),
        (torch.tensor([True, False, True]), [1, 0, 1]),
        (torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float16), [0, 0.5, 1]),
    ],
    ids=["bytes", "unit", "normalized", "large", "constant", "nan", "bool", "half"],
)
def test_values_become_brightness(values: Tensor, drawn: list[float]) -> None:
    """Bytes, unit floats and normalized floats are all shown from black to white."""
    shown = image(plot_predictions(always(), labelled(values.reshape(1, 1, 1, 3))))
    np.testing.assert_allclose(shown[0], drawn, atol=1e-6)  # one division in float32


def test_all_images_are_read_in_the_same_way() -> None:
    """One image beyond [0, 1] says that none of them is in these units."""
    images = torch.tensor([[0.0, 0.5], [-1.0, 1.0]]).reshape(2, 1, 1, 2)
    figure = plot_predictions(always(), labelled(images))
    assert [image(figure, number)[0].tolist() for number in (0, 1)] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("make", [list, tuple, torch.tensor, np.array])
def test_mean_and_std_undo_a_normalization(make: Callable[[list[float]], Any]) -> None:
    """With the numbers of the preset the image is the one that it was made of."""
    original = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    channels = (1, 3, 1, 1)
    normalized = (original - torch.tensor(mean).view(channels)) / torch.tensor(std).view(channels)
    figure = plot_predictions(always(), labelled(normalized), mean=make(mean), std=make(std))
    # Off by the rounding of two operations in float32.
    np.testing.assert_allclose(image(figure), original[0].permute(1, 2, 0), atol=1e-6)


def test_one_mean_serves_every_channel() -> None:
    """A single number is enough, and what leaves [0, 1] is clipped."""
    figure = plot_predictions(
        always(), labelled(torch.tensor([[[[-1.0, 0.0, 4.0]]]])), mean=0.5, std=0.5
    )
    assert image(figure)[0].tolist() == [0, 0.5, 1]


def test_to_image_makes_images_of_flat_inputs() -> None:
    """The function gets one sample on the CPU, and may return an array."""
    model = build_mlp(12, [], 2)
    inputs = torch.rand(5, 12)
    figure = plot_predictions(
        model,
        (inputs, torch.zeros(5, dtype=torch.int64)),
        to_image=lambda sample: sample.reshape(3, 4).numpy(),
    )
    place = int(figure.axes[0].texts[0].get_text().split("#")[1])
    np.testing.assert_array_equal(image(figure), inputs[place].reshape(3, 4))


@pytest.mark.parametrize(
    ("features", "advice"),
    [
        (784, r"to_image=lambda sample: sample.reshape\(28, 28\)"),
        (3072, r"to_image=lambda sample: sample.reshape\(3, 32, 32\)"),
        (10, r"to_image=lambda sample: sample.reshape\(height, width\)"),
    ],
)
def test_flat_inputs_are_refused_with_what_to_pass(features: int, advice: str) -> None:
    """What the image is cannot be known, and the likely answer can be pasted."""
    with pytest.raises(InvalidInputError, match=rf"\({features},\).*{advice}"):
        plot_predictions(always(), labelled(torch.rand(2, features)))


@pytest.mark.parametrize("shape", [(4, 5, 5), (2, 3, 4, 4), (3, 0, 4)])
def test_inputs_that_are_no_images_are_refused(shape: tuple[int, ...]) -> None:
    """The message names the shape and the way out."""
    with pytest.raises(InvalidInputError, match="to_image=") as caught:
        plot_predictions(always(), labelled(torch.rand(2, *shape)))
    assert str(shape) in str(caught.value)


def test_inputs_that_are_no_images_are_refused_before_the_pass() -> None:
    """A long pass is not made for nothing."""
    read: list[int] = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(5):
            read.append(number)
            yield labelled(torch.rand(2, 7))

    with pytest.raises(InvalidInputError, match=r"\(7,\)"):
        plot_predictions(always(), stream())
    assert read == [0]


def test_mapping_names_its_images_pixel_values() -> None:
    """Batches of transformers are drawn, with other tensors beside the images."""

    class Takes(nn.Module):
        def forward(self, pixel_values: Tensor, mask: Tensor) -> Tensor:
            return torch.eye(2)[:1].expand(len(pixel_values), -1)

    batch = {
        "pixel_values": torch.rand(2, 3, 4, 4),
        "mask": torch.ones(2),
        "labels": torch.tensor([1, 1]),
    }
    assert image(plot_predictions(Takes(), [batch])).shape == (4, 4, 3)
    del batch["pixel_values"]
    batch["other"] = torch.ones(2)

    class Others(nn.Module):
        def forward(self, other: Tensor, mask: Tensor) -> Tensor:
            return torch.eye(2)[:1].expand(len(other), -1)

    with pytest.raises(InvalidTypeError, match=r"`pixel_values`.*'mask', 'other'"):
        plot_predictions(Others(), [batch])


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"count": 0}, InvalidArgumentError, "`count`.*0"),
        ({"count": 2.5}, InvalidTypeError, "`count`.*2.5"),
        ({"to_image": 3}, InvalidTypeError, "`to_image`.*3"),
        ({"to_image": lambda sample: "cat"}, InvalidTypeError, "`to_image`.*str"),
        ({"to_image": lambda sample: sample[0, 0]}, InvalidInputError, r"`to_image`.*\(3,\)"),
        ({"mean": 0.5}, InvalidArgumentError, "`mean` is given without `std`"),
        ({"std": 0.5}, InvalidArgumentError, "`std` is given without `mean`"),
        ({"mean": 0.5, "std": 0}, InvalidArgumentError, "`std`.*0"),
        ({"mean": "a", "std": 1}, InvalidTypeError, "`mean`.*'a'"),
        ({"mean": [], "std": 1}, InvalidArgumentError, "`mean`"),
        ({"mean": float("nan"), "std": 1}, InvalidArgumentError, "`mean`.*nan"),
        ({"mean": [0, 0], "std": 1}, InvalidInputError, "`mean`.*1, but holds 2"),
        (
            {"mean": 0, "std": 1, "to_image": lambda sample: sample},
            InvalidArgumentError,
            "`to_image`",
        ),
        ({"class_names": ["a"]}, InvalidArgumentError, "3 names.*holds 1"),
    ],
)
def test_option_that_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception], named: str
) -> None:
    """The message names the argument and the value."""
    with pytest.raises(error, match=named):
        plot_predictions(Answers(3), answering([1], [0]), **options)


def test_mean_for_bytes_is_refused() -> None:
    """Bytes were not normalized, so a mean beside them is a mistake."""
    data = labelled(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(InvalidInputError, match=r"torch\.uint8"):
        plot_predictions(always(), data, mean=0.5, std=0.5)


def test_data_without_a_label_is_refused() -> None:
    """There is nothing to compare with."""
    with pytest.raises(EmptyDataError, match="-100"):
        plot_predictions(Answers(3), answering([1], [-100]))


def test_samples_of_the_data_are_not_changed() -> None:
    """Neither drawing nor the user's function writes into the data."""
    images, labels = answering([1, 2], [0, 0])
    before = images.clone()
    plot_predictions(Answers(3), (images, labels), to_image=lambda sample: sample.mul_(0))
    assert torch.equal(images, before)
