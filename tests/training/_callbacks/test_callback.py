"""Callbacks: when they are called, what they see, what they can request, and their errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training import Callback, TrainContext
from training.tiny import (
    modes_of,
    network,
    plain_network,
    points,
    quiet_trainer,
    random_states,
    same_bits,
    same_weights,
    weights_of,
)

HOOKS = (
    "on_fit_start",
    "on_epoch_start",
    "on_step_end",
    "on_validation_start",
    "on_validation_end",
    "on_epoch_end",
    "on_fit_end",
)
EPOCH_OF_TWO_STEPS = ["on_epoch_start", "on_step_end", "on_step_end"]
VALIDATION = ["on_validation_start", "on_validation_end"]


class Recorder(Callback):
    """Records each call in a list that several recorders may share."""

    def __init__(self, calls: list[str] | None = None, name: str = "") -> None:
        self.calls = [] if calls is None else calls
        self.name = name

    def record(self, hook: str, context: TrainContext) -> None:
        self.calls.append(f"{self.name}{hook}")

    def on_fit_start(self, context: TrainContext) -> None:
        self.record("on_fit_start", context)

    def on_epoch_start(self, context: TrainContext) -> None:
        self.record("on_epoch_start", context)

    def on_step_end(self, context: TrainContext) -> None:
        self.record("on_step_end", context)

    def on_validation_start(self, context: TrainContext) -> None:
        self.record("on_validation_start", context)

    def on_validation_end(self, context: TrainContext) -> None:
        self.record("on_validation_end", context)

    def on_epoch_end(self, context: TrainContext) -> None:
        self.record("on_epoch_end", context)

    def on_fit_end(self, context: TrainContext) -> None:
        self.record("on_fit_end", context)


class Failing(Recorder):
    """Raises in one hook."""

    def __init__(self, hook: str, error: BaseException | None = None) -> None:
        super().__init__()
        self.hook = hook
        self.error = error or KeyError("the reason")

    def record(self, hook: str, context: TrainContext) -> None:
        if hook == self.hook:
            raise self.error


class Stop(Recorder):
    """Requests a stop in the n-th call of one hook."""

    def __init__(self, hook: str, call: int = 1, reason: str = "enough") -> None:
        super().__init__()
        self.hook, self.left, self.reason = hook, call, reason

    def record(self, hook: str, context: TrainContext) -> None:
        if hook == self.hook:
            self.left -= 1
            if self.left == 0:
                context.request_stop(self.reason)


# When they are called


def test_hooks_are_called_in_the_order_of_a_run() -> None:
    """The order for two epochs of two steps with validation."""
    recorder = Recorder()
    quiet_trainer(plain_network(), callbacks=[recorder]).fit(points(8), points(8), epochs=2)
    epoch = [*EPOCH_OF_TWO_STEPS, *VALIDATION, "on_epoch_end"]
    assert recorder.calls == ["on_fit_start", *epoch, *epoch, "on_fit_end"]


def test_hooks_of_validation_are_not_called_without_validation() -> None:
    """Without validation data the validation hooks are not called."""
    recorder = Recorder()
    quiet_trainer(plain_network(), callbacks=[recorder]).fit(points(8), epochs=1)
    assert recorder.calls == ["on_fit_start", *EPOCH_OF_TWO_STEPS, "on_epoch_end", "on_fit_end"]


def test_evaluate_and_predict_call_no_hook() -> None:
    """Callbacks are only called by `fit`."""
    recorder = Recorder()
    trainer = quiet_trainer(plain_network(), callbacks=[recorder])
    trainer.evaluate(points(8))
    trainer.predict(points(8))
    assert recorder.calls == []


def test_order_of_the_list_is_the_order_of_the_calls() -> None:
    """Each hook is called for the callbacks in the order of the list."""
    calls: list[str] = []
    recorders = [Recorder(calls, "a:"), Recorder(calls, "b:")]
    quiet_trainer(plain_network(), callbacks=recorders).fit(points(4), points(4), epochs=1)
    assert calls == [f"{name}{hook}" for hook in HOOKS for name in ("a:", "b:")]


def test_second_fit_calls_the_hooks_again() -> None:
    """Each `fit` has a start and an end."""
    recorder = Recorder()
    trainer = quiet_trainer(plain_network(), callbacks=[recorder])
    trainer.fit(points(4), epochs=1)
    trainer.fit(points(4), epochs=1)
    once = ["on_fit_start", "on_epoch_start", "on_step_end", "on_epoch_end", "on_fit_end"]
    assert recorder.calls == once * 2


@pytest.mark.parametrize("hook", HOOKS)
def test_callback_may_override_a_single_hook(hook: str) -> None:
    """All other hooks of the base class do nothing."""
    calls: list[str] = []

    def note(self: Callback, context: TrainContext) -> None:
        calls.append(hook)

    single = type("Single", (Callback,), {hook: note})
    quiet_trainer(plain_network(), callbacks=[single()]).fit(points(4), points(4), epochs=1)
    assert calls == [hook]


def test_start_of_a_fit_comes_after_the_data_was_checked() -> None:
    """If the data is wrong, no hook is called."""
    recorder = Recorder()
    inputs, targets = points(8)
    with pytest.raises(ValueError, match="`train`"):
        quiet_trainer(plain_network(), callbacks=[recorder]).fit((inputs, targets + 3), epochs=1)
    assert recorder.calls == []


def test_start_of_an_epoch_comes_before_its_data_is_read() -> None:
    """A sampler that receives the epoch in `on_epoch_start` uses it."""
    seen: list[int] = []

    class ByEpoch(Sampler[int]):
        """A sampler that records its epoch when it is read."""

        epoch = 0

        def __iter__(self) -> Iterator[int]:
            seen.append(self.epoch)
            return iter(range(8))

        def __len__(self) -> int:
            return 8

    class Tell(Callback):
        """Passes the number of the epoch to the sampler."""

        def on_epoch_start(self, context: TrainContext) -> None:
            sampler.epoch = context.state.epoch

    sampler = ByEpoch()
    loader = DataLoader(TensorDataset(*points(8)), batch_size=4, sampler=sampler)
    quiet_trainer(plain_network(), callbacks=[Tell()]).fit(loader, epochs=3)
    assert seen == [0, 1, 2]


def test_callbacks_do_not_change_the_weights() -> None:
    """A run with callbacks gives the same weights as one without."""
    watched, alone = network(), network()
    quiet_trainer(watched, callbacks=[Recorder()]).fit(points(), points(8), epochs=2)
    quiet_trainer(alone).fit(points(), points(8), epochs=2)
    assert same_weights(watched, alone)


# The context


class Look(Recorder):
    """Stores what the context showed in each hook."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[Any]] = {hook: [] for hook in HOOKS}

    def record(self, hook: str, context: TrainContext) -> None:
        state = context.state
        self.seen[hook].append((state.epoch, state.step, len(context.history)))


def test_counters_are_current() -> None:
    """Epochs are counted when they end, steps and rows when they are complete."""
    look = Look()
    quiet_trainer(plain_network(), callbacks=[look]).fit(points(8), points(8), epochs=2)
    assert look.seen == {
        "on_fit_start": [(0, 0, 0)],
        "on_epoch_start": [(0, 0, 0), (1, 2, 1)],
        "on_step_end": [(0, 1, 0), (0, 2, 0), (1, 3, 1), (1, 4, 1)],
        "on_validation_start": [(0, 2, 0), (1, 4, 1)],
        "on_validation_end": [(0, 2, 0), (1, 4, 1)],
        "on_epoch_end": [(1, 2, 1), (2, 4, 2)],
        "on_fit_end": [(2, 4, 2)],
    }


def test_context_shows_the_objects_of_the_trainer() -> None:
    """Model, optimizer, state and history are those of the Trainer."""
    contexts: list[TrainContext] = []

    class Keep(Callback):
        """Keeps the context."""

        def on_fit_start(self, context: TrainContext) -> None:
            contexts.append(context)

    model = plain_network()
    trainer = quiet_trainer(model, callbacks=[Keep()])
    trainer.fit(points(4), epochs=1)
    (context,) = contexts
    assert context.model is model
    assert context.optimizer is trainer.optimizer
    assert context.state is trainer.state
    assert context.history is trainer.history


@pytest.mark.parametrize("val", [None, points(4)], ids=["no validation", "validation"])
def test_measures_are_the_columns_of_the_history(val: Any) -> None:
    """The names are known from the start, with and without validation."""
    measures: list[str] = []

    class Keep(Callback):
        """Keeps the names."""

        def on_fit_start(self, context: TrainContext) -> None:
            measures.extend(context.measures)

    trainer = quiet_trainer(
        plain_network(), callbacks=[Keep()], metrics={"m": lambda outputs, targets: 0.0}
    )
    history = trainer.fit(points(4), val, epochs=1)
    assert ("epoch", "step", *measures) == history.names


def test_repr_of_a_context_is_one_line() -> None:
    """It names the model's class and the counters, and no weights."""
    shown: list[str] = []

    class Show(Callback):
        def on_epoch_end(self, context: TrainContext) -> None:
            shown.append(repr(context))

    model = plain_network()
    quiet_trainer(model, callbacks=[Show()]).fit(points(), epochs=1)
    (text,) = shown
    assert text.startswith(f"TrainContext(model={type(model).__name__}, state=TrainState(epoch=1")
    assert "\n" not in text


# Stopping


def test_request_within_an_epoch_ends_it_after_the_step() -> None:
    """No further step is taken; the epoch is validated and its row written."""
    recorder = Recorder()
    trainer = quiet_trainer(plain_network(), callbacks=[Stop("on_step_end", 3), recorder])
    history = trainer.fit(points(), points(8), epochs=5)
    assert history["step"] == [3]
    assert len(history["val_loss"]) == 1
    assert recorder.calls[-4:] == [*VALIDATION, "on_epoch_end", "on_fit_end"]
    assert trainer.state.epoch == 1


def test_request_at_an_epochs_end_ends_the_run() -> None:
    """No further epoch is started."""
    recorder = Recorder()
    trainer = quiet_trainer(plain_network(), callbacks=[Stop("on_epoch_end", 2), recorder])
    assert trainer.fit(points(8), epochs=5)["step"] == [2, 4]
    assert recorder.calls[-2:] == ["on_epoch_end", "on_fit_end"]


def test_request_before_the_first_epoch_trains_nothing() -> None:
    """A request in `on_fit_start` ends the run before its first step."""
    model = plain_network()
    before = weights_of(model)
    history = quiet_trainer(model, callbacks=[Stop("on_fit_start")]).fit(points(8), epochs=5)
    assert len(history) == 0
    assert same_bits(weights_of(model), before)


def test_request_ends_one_fit_only() -> None:
    """A second `fit` continues training."""
    trainer = quiet_trainer(plain_network(), callbacks=[Stop("on_step_end", 1)])
    trainer.fit(points(8), epochs=2)
    assert trainer.fit(points(8), epochs=2)["step"] == [1, 3, 5]


@pytest.mark.parametrize("hook", ["on_step_end", "on_epoch_end"])
def test_reason_of_a_stop_is_reported(capsys: pytest.CaptureFixture[str], hook: str) -> None:
    """The report on stderr contains the reason, whichever hook requested the stop."""
    quiet_trainer(
        plain_network(), progress=True, callbacks=[Stop(hook, reason="it has converged")]
    ).fit(points(8), epochs=5)
    assert "it has converged" in capsys.readouterr().err


def test_first_reason_of_several_is_kept() -> None:
    """The first request determines the reason."""
    contexts: list[TrainContext] = []

    class Keep(Callback):
        """Keeps the context."""

        def on_fit_end(self, context: TrainContext) -> None:
            contexts.append(context)

    stops = [Stop("on_step_end", reason="one"), Stop("on_step_end", reason="two")]
    quiet_trainer(plain_network(), callbacks=[*stops, Keep()]).fit(points(8), epochs=1)
    assert contexts[0].stop_reason == "one"


# Errors


@pytest.mark.parametrize("hook", HOOKS)
def test_error_in_a_hook_names_the_callback_and_the_hook(hook: str) -> None:
    """The exception arrives unchanged, and a note contains the callback, the hook and the place."""
    failing = Failing(hook)
    with pytest.raises(KeyError, match="the reason") as caught:
        quiet_trainer(plain_network(), callbacks=[failing]).fit(points(8), points(8), epochs=1)
    assert caught.value is failing.error
    (note,) = caught.value.__notes__
    assert f"In `{hook}` of the callback Failing, after " in note
    assert " epochs and " in note


@pytest.mark.parametrize("hook", HOOKS)
def test_error_in_a_hook_restores_modes_random_states_and_gradients(hook: str) -> None:
    """They are also restored after an error."""
    model = network()
    model.get_submodule("backbone.2").eval()
    modes, states = modes_of(model), random_states()
    with pytest.raises(KeyError):
        quiet_trainer(model, callbacks=[Failing(hook)]).fit(points(8), points(8), epochs=1)
    assert modes_of(model) == modes
    assert random_states() == states
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("hook", HOOKS)
def test_error_in_a_hook_does_not_prevent_on_fit_end(hook: str) -> None:
    """`on_fit_end` is called for all other callbacks."""
    first, last = Recorder(), Recorder()
    with pytest.raises(KeyError, match=f"`{hook}`"):
        quiet_trainer(plain_network(), callbacks=[first, Failing(hook), last]).fit(
            points(8), points(8), epochs=1
        )
    assert first.calls[-1] == "on_fit_end"
    assert last.calls[-1] == "on_fit_end"


def test_error_of_validation_does_not_prevent_on_validation_end() -> None:
    """`on_validation_end` is called for each callback if validation fails."""
    first, last = Recorder(), Recorder()
    with pytest.raises(KeyError, match="`on_validation_end`"):
        quiet_trainer(plain_network(), callbacks=[first, Failing("on_validation_end"), last]).fit(
            points(8), points(8), epochs=1
        )
    assert first.calls.count("on_validation_end") == 1
    assert last.calls.count("on_validation_end") == 1


def test_first_error_is_raised() -> None:
    """An error in `on_fit_end` does not hide the error that ended the run."""
    with pytest.raises(KeyError, match="`on_step_end`"):
        quiet_trainer(
            plain_network(), callbacks=[Failing("on_step_end"), Failing("on_fit_end")]
        ).fit(points(8), epochs=1)


def test_error_at_the_end_is_added_to_the_first_as_a_note() -> None:
    """Both failures can be read."""
    with pytest.raises(KeyError, match="Afterwards KeyError: 'the reason' In `on_fit_end`"):
        quiet_trainer(
            plain_network(), callbacks=[Failing("on_step_end"), Failing("on_fit_end")]
        ).fit(points(8), epochs=1)


def test_first_of_several_failures_at_the_end_is_raised() -> None:
    """If two callbacks fail in one hook, the first one is named."""
    first, second = Failing("on_fit_end"), Failing("on_fit_end")
    with pytest.raises(KeyError) as caught:
        quiet_trainer(plain_network(), callbacks=[first, second]).fit(points(8), epochs=1)
    assert caught.value is first.error


def test_error_in_the_data_calls_on_fit_end() -> None:
    """An error of the data is raised unchanged, after `on_fit_end`."""

    class Broken:
        """Yields one batch, then raises."""

        def __iter__(self) -> Any:
            yield points(4)
            raise KeyError("disk")

    recorder = Recorder()
    with pytest.raises(KeyError, match="disk"):
        quiet_trainer(plain_network(), callbacks=[recorder]).fit(Broken(), epochs=1)
    assert recorder.calls == ["on_fit_start", "on_epoch_start", "on_step_end", "on_fit_end"]


def test_interruption_by_the_user_is_raised_unchanged() -> None:
    """Ctrl-C in a callback is not an error of the callback."""
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        quiet_trainer(
            plain_network(), callbacks=[Failing("on_step_end", KeyboardInterrupt()), recorder]
        ).fit(points(8), epochs=1)
    assert recorder.calls[-1] == "on_fit_end"


def test_training_can_continue_after_an_error() -> None:
    """The steps before the error count, and a second `fit` continues."""
    trainer = quiet_trainer(plain_network(), callbacks=[Failing("on_epoch_end")])
    with pytest.raises(KeyError):
        trainer.fit(points(8), epochs=3)
    assert (trainer.state.epoch, trainer.state.step) == (1, 2)
    assert trainer.history["step"] == [2]


def test_error_at_the_end_is_raised_while_another_error_is_handled() -> None:
    """A failed callback is reported in a run started from an except block."""
    trainer = quiet_trainer(plain_network(), callbacks=[Failing("on_fit_end")])
    try:
        int("a number that never was")
    except ValueError:
        with pytest.raises(KeyError, match="`on_fit_end`"):
            trainer.fit(points(8), epochs=1)


# Invalid callbacks


def test_class_of_a_callback_is_an_error_that_names_it() -> None:
    """The message contains the position and the name of the class."""
    with pytest.raises(InvalidTypeError) as caught:
        quiet_trainer(plain_network(), callbacks=[Recorder(), Recorder])
    assert "callbacks[1]" in str(caught.value)
    assert "Recorder" in str(caught.value)


@pytest.mark.parametrize("callback", [print, "stop", None, nn.Identity()], ids=["f", "s", "N", "m"])
def test_object_that_is_not_a_callback_is_an_error_that_names_its_type(callback: Any) -> None:
    """The message contains the position and the type of the object."""
    with pytest.raises(InvalidTypeError) as caught:
        quiet_trainer(plain_network(), callbacks=[callback])
    assert "callbacks[0]" in str(caught.value)
    assert type(callback).__name__ in str(caught.value)


@pytest.mark.parametrize("callbacks", [Recorder(), None, 3], ids=["one", "None", "number"])
def test_callbacks_that_are_not_a_list_are_an_error_that_names_the_argument(callbacks: Any) -> None:
    """A single callback outside a list raises the library's error."""
    with pytest.raises(InvalidTypeError, match="`callbacks`"):
        quiet_trainer(plain_network(), callbacks=callbacks)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("on_steps_end", "on_step_end"),
        ("on_epochend", "on_epoch_end"),
        ("on_fit_begin", "on_fit_start"),
        ("on_train_batch_end", "on_step_end"),
        ("on_train_begin", "on_fit_start"),
        ("on_checkpoint_saved", "on_checkpoint"),
    ],
)
@pytest.mark.parametrize("where", ["class", "base class", "object"])
def test_method_that_is_not_a_hook_is_an_error_with_the_near_name(
    name: str, meant: str, where: str
) -> None:
    """It would never be called, wherever it is defined."""

    def method(*arguments: object) -> None: ...

    kind = type("Misnamed", (Callback,), {} if where == "object" else {name: method})
    callback = (type("Derived", (kind,), {}) if where == "base class" else kind)()
    if where == "object":
        setattr(callback, name, method)
    with pytest.raises(InvalidArgumentError, match=rf"`{name}`.*`?{meant}") as caught:
        quiet_trainer(plain_network(), callbacks=[Recorder(), callback])
    assert "callbacks[1]" in str(caught.value)


def test_attributes_and_private_methods_may_have_any_name() -> None:
    """Only methods that look like hooks are refused."""

    class Fine(Callback):
        """Has names that are near those of hooks."""

        on_screen = False

        def _on_probe(self) -> None: ...

        def once(self) -> None: ...

    quiet_trainer(plain_network(), callbacks=[Fine()]).fit(points(8), epochs=1)


def test_hook_that_is_an_attribute_of_the_object_is_called() -> None:
    """A function that was assigned to the object is a hook too."""
    seen: list[int] = []
    callback = Callback()
    callback.on_step_end = lambda context: seen.append(context.state.step)  # type: ignore[method-assign]
    quiet_trainer(plain_network(), callbacks=[callback]).fit(points(8), epochs=1)
    assert seen == [1, 2]


def test_hook_with_other_parameters_is_an_error_before_training() -> None:
    """It would fail when it is called, perhaps after an epoch."""

    class NoContext(Callback):
        """Forgets the context."""

        def on_epoch_end(self) -> None: ...  # type: ignore[override]

    with pytest.raises(InvalidTypeError, match="`on_epoch_end`"):
        quiet_trainer(plain_network(), callbacks=[NoContext()])


def test_gradients_of_the_update_can_be_seen_after_the_step() -> None:
    """Gradients are cleared after `on_step_end`, so a logger can read them."""
    norms: list[float] = []

    class Norms(Callback):
        """Reads the norm of the head's gradient."""

        def on_step_end(self, context: TrainContext) -> None:
            gradient = context.model.get_parameter("head.weight").grad
            assert gradient is not None
            norms.append(float(torch.linalg.vector_norm(gradient)))

    quiet_trainer(plain_network(), callbacks=[Norms()]).fit(points(8), epochs=1)
    assert len(norms) == 2
    assert min(norms) > 0.0
