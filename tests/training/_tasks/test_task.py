"""The default task for pairs and mappings, and custom tasks."""

from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training import Accuracy, StepOutput, Task
from training.tiny import cut, plain_network, points, quiet_trainer, ready_batches, same_weights


class ByName(nn.Module):
    """Accepts its inputs by name and returns `.logits`, like models of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain_network()

    def forward(self, values: Tensor, scale: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.inner(values * scale.unsqueeze(1)))


class Cut(NamedTuple):
    """A batch as a named tuple."""

    inputs: Tensor
    targets: Tensor


def mappings(kind: Any = dict) -> list[Any]:
    """Return batches as mappings with `labels`, for `ByName`."""
    return [
        kind({"values": inputs, "scale": torch.ones(len(inputs)), "labels": targets})
        for inputs, targets in ready_batches(points())
    ]


# The default task


def test_mappings_are_trained_on_like_pairs() -> None:
    """`labels` are the targets, and the rest is passed to the model by name."""
    by_name, plain = ByName(), plain_network()
    quiet_trainer(by_name, lr=0.1).fit(mappings(), epochs=2)
    quiet_trainer(plain, lr=0.1).fit(ready_batches(points()), epochs=2)
    assert same_weights(by_name.inner, plain)


@pytest.mark.parametrize("kind", [dict, UserDict], ids=["dict", "UserDict"])
def test_every_type_of_mapping_counts_its_samples(kind: Any) -> None:
    """Mappings that are not dicts, as tokenizers return, are batches too."""
    history = quiet_trainer(ByName(), lr=0.1).fit(mappings(kind), epochs=1)
    assert history["samples_per_second"][0] > 0.0
    assert history["step"] == [6]


def test_mapping_keeps_its_labels() -> None:
    """The user's batches are not changed."""
    batches = mappings()
    quiet_trainer(ByName()).fit(batches, epochs=1)
    assert all(set(batch) == {"values", "scale", "labels"} for batch in batches)


def test_mapping_without_labels_can_be_predicted() -> None:
    """`predict` needs no targets and ignores them."""
    with_labels = mappings()
    without = [{name: batch[name] for name in ("values", "scale")} for batch in with_labels]
    trainer = quiet_trainer(ByName())
    assert torch.equal(trainer.predict(without), trainer.predict(with_labels))


@pytest.mark.parametrize(
    "make",
    [tuple, list, lambda pair: Cut(*pair)],
    ids=["tuple", "list", "NamedTuple"],
)
def test_pairs_of_every_type_are_trained_on_alike(make: Any) -> None:
    """A pair may be a tuple, a list or a named tuple."""
    model, expected = plain_network(), plain_network()
    quiet_trainer(model).fit([make(pair) for pair in ready_batches(points())], epochs=1)
    quiet_trainer(expected).fit(ready_batches(points()), epochs=1)
    assert same_weights(model, expected)


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (points(4)[0], "tensor of shape (4, 6)"),
        ((*points(4), torch.zeros(4)), "tuple of length 3"),
        ((points(4)[0],), "tuple of length 1"),
        ({"values": points(4)[0]}, "'values'"),
        ("text", "str"),
    ],
    ids=["tensor", "triple", "single", "mapping", "text"],
)
def test_batch_of_an_unknown_form_is_an_error_that_describes_it(batch: Any, told: str) -> None:
    """The message describes a batch that is neither a pair nor a mapping with labels."""
    with pytest.raises(InvalidTypeError) as caught:
        quiet_trainer(plain_network()).fit([batch], epochs=1)
    assert told in str(caught.value)


def test_model_that_does_not_return_a_tensor_is_an_error_that_describes_it() -> None:
    """A model that returns a tuple needs a custom task."""

    class Pair(nn.Module):
        """Returns two outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = plain_network()

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(inputs), inputs

    with pytest.raises(InvalidTypeError, match="tuple of length 2"):
        quiet_trainer(Pair()).fit(points(), epochs=1)


# Custom tasks


class TwoInputs(Task):
    """Compares two inputs with one target."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        left, right, targets = batch
        outputs = model(left, right)
        loss = nn.functional.mse_loss(outputs, targets)
        return StepOutput(loss, outputs.detach(), targets, weight=len(targets))

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        outputs: Tensor = model(*batch[:2])
        return outputs


def triples(samples: int = 12) -> list[tuple[Tensor, ...]]:
    """Return batches of two inputs and a target for a bilinear model."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(samples, 2, generator=generator)
    right = torch.randn(samples, 3, generator=generator)
    targets = (left[:, :1] * right[:, 1:2]).contiguous()
    return list(zip(cut(left, 4), cut(right, 4), cut(targets, 4), strict=True))


def bilinear() -> nn.Bilinear:
    """Return a small model with two inputs and fixed weights."""
    model = nn.Bilinear(2, 3, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).view_as(parameter))
    return model


def test_task_with_two_inputs_equals_the_hand_written_loop() -> None:
    """A custom task gives the same weights as a hand-written loop."""
    model, expected = bilinear(), bilinear()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for left, right, targets in triples():
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(expected(left, right), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    quiet_trainer(model, task=TwoInputs(), lr=0.1).fit(triples(), epochs=2)
    assert same_weights(model, expected)


def test_task_with_two_inputs_is_evaluated_and_predicts() -> None:
    """The same task is used for evaluation, and for predictions without targets."""
    trainer = quiet_trainer(
        bilinear(), task=TwoInputs(), metrics={"error": lambda o, t: (o - t).abs().mean()}
    )
    before = trainer.evaluate(triples())
    trainer.fit(triples(), triples(), epochs=50)
    after = trainer.evaluate(triples())
    assert after["loss"] < 0.1 * before["loss"]
    assert after["error"] < before["error"]
    predicted = trainer.predict([batch[:2] for batch in triples()])
    assert predicted.shape == (12, 1)


def test_predict_of_a_task_is_the_outputs_of_its_step_by_default() -> None:
    """A task with only `step` predicts the outputs that its metrics receive."""

    class StepAlone(Task):
        """Has no `predict`."""

        def step(self, model: nn.Module, batch: Any) -> StepOutput:
            outputs = model(batch[0])
            loss = nn.functional.cross_entropy(outputs, batch[1])
            return StepOutput(loss, outputs.softmax(1), batch[1], len(batch[1]))

    model = plain_network()
    inputs, targets = points(9)
    predicted = quiet_trainer(model, task=StepAlone()).predict((inputs, targets))
    with torch.no_grad():
        expected = torch.cat([model(rows).softmax(1) for rows in cut(inputs, 4)])
    assert torch.equal(predicted, expected)


def test_multi_label_classification_needs_no_task() -> None:
    """With BCEWithLogitsLoss the weights equal those of the hand-written loop, bit for bit."""
    inputs, _ = points()
    targets = (inputs[:, :3] > 0).float()
    model, expected = plain_network(), plain_network()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for rows, labels in ready_batches((inputs, targets)):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(expected(rows), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    trainer = quiet_trainer(model, loss_fn=nn.BCEWithLogitsLoss(), lr=0.1)
    history = trainer.fit(ready_batches((inputs, targets)), (inputs, targets), epochs=1)
    assert same_weights(model, expected)
    final = nn.functional.binary_cross_entropy_with_logits(expected(inputs), targets)
    # Means of batches against the mean of all, in float32.
    assert history["val_loss"] == pytest.approx([float(final.detach())], rel=1e-5)


class Distillation(Task):
    """Trains a model on the outputs of another one."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher.eval()

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        inputs, targets = batch
        outputs = model(inputs)
        with torch.no_grad():
            taught = self.teacher(inputs).log_softmax(1)
        loss = nn.functional.kl_div(
            outputs.log_softmax(1), taught, reduction="batchmean", log_target=True
        )
        return StepOutput(loss, outputs.detach(), targets, weight=len(targets))


def test_distillation_brings_a_student_to_its_teacher() -> None:
    """The student learns the teacher's outputs, and the teacher is unchanged."""
    teacher, kept = plain_network(), plain_network()
    student = nn.Linear(6, 3)
    nn.init.zeros_(student.weight)
    nn.init.zeros_(student.bias)
    agreement = {"agreement": Accuracy()}
    inputs, _ = points(40)
    taught = teacher(inputs).argmax(1)
    trainer = quiet_trainer(student, task=Distillation(teacher), lr=0.1, metrics=agreement)
    history = trainer.fit((inputs, taught), epochs=20)
    assert history["train_loss"][-1] < 0.5 * history["train_loss"][0]
    assert same_weights(teacher, kept)


class Auxiliary(nn.Module):
    """Has a second output in train mode, like Inception and GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)
        self.side = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Any:
        features = self.body(inputs).relu()
        if self.training:
            return SimpleNamespace(logits=self.head(features), aux_logits=self.side(features))
        return self.head(features)


class WithAuxiliary(Task):
    """Adds the loss of the second output if there is one."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        inputs, targets = batch
        outputs = model(inputs)
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        loss = nn.functional.cross_entropy(logits, targets)
        if not isinstance(outputs, Tensor):
            loss = loss + 0.3 * nn.functional.cross_entropy(outputs.aux_logits, targets)
        return StepOutput(loss, logits.detach(), targets, weight=len(targets))


def test_auxiliary_outputs_are_trained_and_not_validated() -> None:
    """The model is in train mode in training and in eval mode in validation."""
    model = Auxiliary()
    before = model.side.weight.detach().clone()
    trainer = quiet_trainer(model, task=WithAuxiliary(), lr=0.1, metrics={"accuracy": Accuracy()})
    trainer.fit(points(), points(), epochs=2)
    assert not torch.equal(model.side.weight, before)
    inputs, targets = points()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model.eval()(inputs), targets)
    # Means of batches against the mean of all, in float32.
    assert trainer.evaluate((inputs, targets))["loss"] == pytest.approx(float(expected), rel=1e-5)


# Errors


@pytest.mark.parametrize("task", [Distillation, "distillation", nn.Identity(), 3], ids=str)
def test_value_that_is_not_a_task_is_an_error_that_shows_it(task: Any) -> None:
    """A class, a string or a module is not a task."""
    with pytest.raises(InvalidTypeError) as caught:
        quiet_trainer(plain_network(), task=task)
    assert "`task`" in str(caught.value)
    assert repr(task) in str(caught.value)


def test_loss_with_a_task_is_an_error_that_names_both() -> None:
    """The task computes its own loss, so `loss_fn` would be ignored."""
    with pytest.raises(InvalidArgumentError) as caught:
        quiet_trainer(plain_network(), task=TwoInputs(), loss_fn=nn.MSELoss())
    assert "`loss_fn`" in str(caught.value)
    assert "TwoInputs" in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "NoneType"),
        (torch.zeros(()), "Tensor"),
        (StepOutput(torch.zeros(2), None, None, 2), "(2,)"),
        (StepOutput(1.0, None, None, 2), "float"),  # type: ignore[arg-type]
    ],
    ids=["nothing", "loss alone", "loss of a shape", "loss as a number"],
)
def test_step_that_does_not_return_a_step_output_is_an_error_that_names_both(
    returned: Any, told: str
) -> None:
    """The message contains the task's name and what was returned."""

    class Wrong(Task):
        """Returns the value that the test sets."""

        def step(self, model: nn.Module, batch: Any) -> Any:
            return returned

    with pytest.raises(InvalidTypeError) as caught:
        quiet_trainer(plain_network(), task=Wrong()).fit(points(), epochs=1)
    assert "Wrong" in str(caught.value)
    assert told in str(caught.value)


def test_task_without_a_step_cannot_be_created() -> None:
    """`step` is abstract."""
    with pytest.raises(TypeError, match="step"):
        type("Empty", (Task,), {})()


# transformers


def tiny_bert() -> nn.Module:
    """Return a BERT with one layer, three classes and fixed weights."""
    from transformers import AutoModelForSequenceClassification, BertConfig

    sizes: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 16,
        "num_labels": 3,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make: Any = AutoModelForSequenceClassification.from_config
        model: nn.Module = make(BertConfig(**sizes))
    return model


class Sentences:
    """A dataset like those of Hugging Face: items are mappings, and tokens are lists of numbers."""

    def __init__(self, samples: int = 24) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(3, 20, (samples, 5), generator=generator)
        self.labels = torch.arange(samples) % 3
        self.tokens[:, 1] = self.labels  # One token determines the class.

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "input_ids": self.tokens[index].tolist(),
            "attention_mask": [1] * 5,
            "labels": int(self.labels[index]),
        }


@pytest.mark.slow
def test_model_of_transformers_trains_without_a_task() -> None:
    """A sequence classifier learns from mappings of tokens."""
    trainer = quiet_trainer(tiny_bert(), optimizer=torch.optim.AdamW, lr=0.01, batch_size=8)
    history = trainer.fit(Sentences(), Sentences(), epochs=15)
    assert history["val_accuracy"][-1] > 0.9
    assert trainer.predict(Sentences()).shape == (24, 3)


@pytest.mark.slow
def test_model_of_transformers_trains_like_its_hand_written_loop() -> None:
    """The loss equals the one that the model computes from its labels, bit for bit."""
    data = Sentences(8)
    batch = {
        "input_ids": data.tokens,
        "attention_mask": torch.ones(8, 5, dtype=torch.int64),
        "labels": data.labels,
    }
    model, expected = tiny_bert().eval(), tiny_bert()
    expected.load_state_dict(model.state_dict())
    for module in (model, expected):
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    expected.train()
    for _ in range(2):
        optimizer.zero_grad()
        expected(**batch).loss.backward()
        optimizer.step()
    quiet_trainer(model, lr=0.1).fit([batch], epochs=2)
    assert same_weights(model, expected)


# The output of a step


def test_repr_of_a_step_output_is_one_line() -> None:
    """It contains the loss and shapes, and no tensor data."""
    loss = torch.tensor(0.25, requires_grad=True)
    output = StepOutput(loss, torch.zeros(100, 3), None, weight=100)
    assert repr(output) == (
        "StepOutput(loss=0.25, outputs=a tensor of shape (100, 3), targets=None, weight=100)"
    )


# Batches without tensors


class FromTexts(Task):
    """Learns the length of texts, which it converts to tensors itself."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        lengths = torch.tensor([[float(len(text))] for text in batch["texts"]])
        loss = nn.functional.mse_loss(model(lengths), lengths)
        return StepOutput(loss, None, None, weight=len(lengths))


@pytest.mark.parametrize(
    "extra", [{}, {"numbers": [torch.zeros(3)]}], ids=["texts alone", "tensors too"]
)
def test_task_may_take_batches_without_tensors(extra: dict[str, Any]) -> None:
    """A custom task accepts any batch; its samples are counted if it contains tensors."""
    batch = {"texts": ["a", "bcd", "ef"]} | extra
    history = quiet_trainer(nn.Linear(1, 1), task=FromTexts()).fit([batch], epochs=1)
    assert history["step"] == [1]
    assert (history["samples_per_second"][0] > 0.0) is bool(extra)
