"""The certificate of frozen tensors that a training run returns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetunelib import Trainer, freeze_and_replace_head
from finetunelib.callbacks import EMA
from finetunelib.finetuning import (
    Certificate,
    fingerprint,
    freeze,
    load_weights,
    save_weights,
    unfreeze,
)
from finetunelib.finetuning._digests import digest
from finetunelib.finetuning._freezing import known_digests
from finetunelib.training import Callback, History, TrainContext
from training.tiny import network, plain_network, points, quiet_trainer


class Meddler(Callback):
    """Writes to a frozen tensor once during training."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done = False

    def on_epoch_end(self, context: TrainContext) -> None:
        """Add one to the tensor."""
        if not self.done:
            with torch.no_grad():
                context.model.get_parameter(self.name).add_(1)
        self.done = True


class Unfreezer(Callback):
    """Unfreezes a part during training."""

    def on_epoch_start(self, context: TrainContext) -> None:
        """Unfreeze the first layer at the start of the second epoch."""
        if context.state.epoch == 1:
            unfreeze(context.model, "backbone.1")


def fit(trainer: Trainer, epochs: int = 1) -> Certificate | None:
    """Train, and return the certificate."""
    return trainer.fit(points(), epochs=epochs).certificate


def frozen_network() -> nn.Module:
    """Return a network that is frozen except for a new head."""
    return freeze_and_replace_head(network(), num_classes=3)


def test_all_that_is_frozen_is_certified() -> None:
    """It contains the digests of the frozen part's parameters and buffers."""
    model = frozen_network()
    before = fingerprint(model)
    certificate = fit(quiet_trainer(model))
    assert certificate == Certificate(before)


def test_model_without_frozen_tensors_has_no_certificate() -> None:
    """`certificate` is `None` if nothing is frozen."""
    assert fit(quiet_trainer(network())) is None


def test_loaded_tensors_are_named(tmp_path: Path) -> None:
    """`loaded` lists the tensors that still have the values that `load_weights` wrote."""
    path = save_weights(plain_network(), tmp_path / "net.safetensors")
    model = plain_network()
    load_weights(model, path)
    freeze_and_replace_head(model, num_classes=3)
    with torch.no_grad():
        model.get_parameter("backbone.1.bias").add_(1)  # Changed after loading.
    certificate = fit(quiet_trainer(model))
    assert certificate is not None
    assert certificate.loaded == ("backbone.1.weight",)
    assert set(certificate.digests) == {"backbone.1.weight", "backbone.1.bias"}


def test_tensors_loaded_into_a_part_are_named(tmp_path: Path) -> None:
    """Weights that were loaded into the backbone alone count as loaded."""
    path = save_weights(plain_network().backbone, tmp_path / "backbone.safetensors")
    model = plain_network()
    load_weights(model.backbone, path)
    freeze(model, "backbone")
    certificate = fit(quiet_trainer(model))
    assert certificate is not None
    assert certificate.loaded == ("backbone.1.weight", "backbone.1.bias")


def test_frozen_tensor_that_moves_is_reported() -> None:
    """A warning names it, and the certificate lists it as moved."""
    model = freeze_and_replace_head(plain_network(), num_classes=3)
    trainer = quiet_trainer(model, callbacks=[Meddler("backbone.1.bias")])
    with pytest.warns(UserWarning, match=r"`backbone\.1\.bias`"):
        certificate = fit(trainer)
    assert certificate is not None
    assert certificate.moved == ("backbone.1.bias",)
    assert set(certificate.digests) == {"backbone.1.weight"}


def test_tensor_that_moved_once_is_never_certified_again() -> None:
    """A second run that does not change it does not warn, and still lists it as moved."""
    model = freeze_and_replace_head(plain_network(), num_classes=3)
    trainer = quiet_trainer(model, callbacks=[Meddler("backbone.1.bias")])
    with pytest.warns(UserWarning, match="frozen"):
        fit(trainer)
    certificate = fit(trainer)
    assert certificate is not None
    assert certificate.moved == ("backbone.1.bias",)


def test_certificate_covers_all_runs_of_a_trainer() -> None:
    """Digests are compared with those at the start of the first `fit`."""
    model = frozen_network()
    before = fingerprint(model)
    trainer = quiet_trainer(model)
    fit(trainer)
    assert fit(trainer) == Certificate(before)


def test_part_that_was_unfrozen_in_between_is_left_out() -> None:
    """A part that was trained between two frozen runs is not certified."""
    model = freeze_and_replace_head(plain_network(), num_classes=3)
    trainer = quiet_trainer(model)
    fit(trainer)
    unfreeze(model)
    assert fit(trainer) is None
    freeze(model, "backbone")
    assert fit(trainer) is None


def test_part_that_is_unfrozen_during_training_is_left_out() -> None:
    """Only tensors that are frozen until the end are certified, without a warning."""
    model = freeze_and_replace_head(network(), num_classes=3)
    certificate = fit(quiet_trainer(model, callbacks=[Unfreezer()]), epochs=2)
    assert certificate is not None
    assert not [name for name in certificate.digests if name.startswith("backbone.1.")]
    assert "backbone.2.running_mean" in certificate.digests


def test_tensor_that_changed_between_two_runs_is_left_out() -> None:
    """A change outside `fit` is not reported as moved."""
    model = freeze_and_replace_head(plain_network(), num_classes=3)
    trainer = quiet_trainer(model)
    fit(trainer)
    with torch.no_grad():
        model.get_parameter("backbone.1.bias").add_(1)
    certificate = fit(trainer)
    assert certificate is not None
    assert (set(certificate.digests), certificate.moved) == ({"backbone.1.weight"}, ())


def test_parameters_that_were_frozen_by_hand_are_certified() -> None:
    """Parameters with `requires_grad=False` are certified without a call of `freeze`."""
    model = plain_network()
    model.backbone.requires_grad_(False)
    certificate = fit(quiet_trainer(model))
    assert certificate is not None
    assert set(certificate.digests) == {"backbone.1.weight", "backbone.1.bias"}


def test_swapped_averages_do_not_move_frozen_tensors() -> None:
    """Validating with averaged weights leaves frozen tensors unchanged."""
    model = frozen_network()
    before = fingerprint(model)
    trainer = quiet_trainer(model, callbacks=[EMA()])
    assert trainer.fit(points(), points(), epochs=2).certificate == Certificate(before)


def test_run_that_fails_has_no_certificate() -> None:
    """The tensors were not compared at its end."""

    class Failing(Callback):
        def on_epoch_end(self, context: TrainContext) -> None:
            if context.state.epoch == 2:
                raise RuntimeError("on purpose")

    trainer = quiet_trainer(frozen_network(), callbacks=[Failing()])
    assert fit(trainer) is not None
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(trainer)
    assert trainer.history.certificate is None


def test_refused_run_leaves_the_certificate_unchanged() -> None:
    """Invalid data changes neither the model nor the certificate."""
    trainer = quiet_trainer(frozen_network())
    certificate = fit(trainer)
    with pytest.raises(ValueError, match="inputs"):
        trainer.fit((torch.zeros(4, 2), torch.zeros(4).long()), epochs=1)
    assert trainer.history.certificate is certificate


def test_history_read_from_a_file_has_no_certificate(tmp_path: Path) -> None:
    """A history file contains rows only."""
    history = quiet_trainer(frozen_network()).fit(points(), epochs=1)
    read = History.from_json(history.to_json(tmp_path / "history.json"))
    assert read == history
    assert read.certificate is None


@pytest.mark.parametrize(
    ("certificate", "text"),
    [
        (
            Certificate({"a": "1", "b": "2"}, loaded=("a",)),
            (
                "2 of 2 frozen tensors are bit for bit what they were before training; "
                "1 of them is bitwise the loaded one."
            ),
        ),
        (
            Certificate({"a": "1"}, moved=("b", "c")),
            (
                "1 of 3 frozen tensors are bit for bit what they were before training; "
                "changed although frozen: b, c."
            ),
        ),
        (
            Certificate({"a": "1"}),
            "1 of 1 frozen tensor is bit for bit what it was before training.",
        ),
        (
            Certificate({"a": "1"}, idle=("b", "c")),
            (
                "1 of 1 frozen tensor is bit for bit what it was before training; "
                "2 trainable ones are unchanged by the last fit too: b, c."
            ),
        ),
    ],
)
def test_certificate_is_a_sentence(certificate: Certificate, text: str) -> None:
    """The text uses the singular for one tensor and the plural for several."""
    assert " ".join(str(certificate).splitlines()) == text


def test_repr_of_a_certificate_is_short() -> None:
    """It counts tensors and shows no digests."""
    digests = {f"layer{i}.weight": "0123456789abcdef" * 4 for i in range(60)}
    certificate = Certificate(digests, tuple(digests)[:5], tuple(f"bn{i}" for i in range(9)))
    assert repr(certificate) == (
        "Certificate(60 unchanged, 5 of them loaded, moved=['bn0', 'bn1', 'bn2'] and 6 more)"
    )


def test_frozen_tensors_are_read_once_in_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their digests at the start are those of `freeze` or of the last `fit`."""
    computed: list[int] = []
    real = digest

    def counted(tensor: Tensor) -> str:
        if not tensor.requires_grad:  # Trainable ones are compared as well.
            computed.append(tensor.numel())
        return real(tensor)

    monkeypatch.setattr(known_digests, "digest", counted)
    model = plain_network()
    frozen = len(freeze(model, "backbone"))
    assert len(computed) == frozen
    trainer = quiet_trainer(model)
    for fits in (1, 2):
        certificate = trainer.fit(points(8), epochs=1).certificate
        assert certificate is not None
        assert (len(certificate.digests), len(computed)) == (frozen, (1 + fits) * frozen)


@pytest.mark.parametrize("write", ["in place", "through data", "another tensor", "by numpy"])
def test_write_before_a_fit_is_not_taken_for_one_of_training(write: str) -> None:
    """Tensors that were written to since `freeze` are read again at the start."""
    model = plain_network()
    freeze(model, "backbone")
    weight = model.get_parameter("backbone.1.weight")
    with torch.no_grad():
        if write == "in place":
            weight.add_(1.0)
        elif write == "through data":
            weight.data.add_(1.0)
        elif write == "another tensor":
            weight.data = weight.data + 1.0
        else:
            weight.detach().numpy()[:] += 1.0
    certificate = quiet_trainer(model).fit(points(8), epochs=1).certificate
    assert certificate is not None
    assert certificate.moved == ()
    assert certificate.digests["backbone.1.weight"] == fingerprint(model)["backbone.1.weight"]


def test_digest_that_is_known_by_mistake_certifies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a write leaves no trace, the tensor counts as changed, and not as unchanged."""
    model = plain_network()
    monkeypatch.setattr(known_digests, "_traces", lambda _: ())
    freeze(model, "backbone")
    model.get_parameter("backbone.1.weight").data.add_(1.0)
    with pytest.warns(UserWarning, match="frozen tensors changed"):
        certificate = quiet_trainer(model).fit(points(8), epochs=1).certificate
    assert certificate is not None
    assert certificate.moved == ("backbone.1.weight",)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(5.0),
        torch.arange(4.0).reshape(2, 2).t(),
        torch.tensor(3),
        torch.empty(0),
        torch.arange(9, dtype=torch.uint8)[1:],
        torch.tensor([True, False]),
        torch.zeros(3, dtype=torch.complex64),
        torch.eye(3).to_sparse(),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_known_digest_is_the_computed_one(tensor: Tensor) -> None:
    """Tensors of all kinds have the digest of their bits, before and after a change."""
    for _ in range(2):
        assert known_digests.computed_digest(tensor) == digest(tensor)
        assert known_digests.known_digest(tensor) == digest(tensor)
        if tensor.layout is torch.strided:
            tensor.data.fill_(1)
    assert known_digests.known_digest(tensor) == digest(tensor)


class WithSpare(nn.Module):
    """A frozen layer, a trained one, and one that does not reach the output."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head, self.spare = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 6)
        freeze(self, "base")

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.base(inputs) + 0.0 * self.spare(inputs)
        outputs: Tensor = self.head(hidden)
        return outputs


def test_trainable_tensors_that_did_not_move_are_listed() -> None:
    """Here a gradient of zero reached them. They are judged at the end of each `fit`."""
    model = WithSpare()
    trainer = quiet_trainer(model, lr=0.1)
    certificate = fit(trainer)
    assert certificate is not None
    assert certificate.idle == ("spare.weight", "spare.bias")
    assert set(certificate.digests) == {"base.weight", "base.bias"}
    assert "2 idle" in repr(certificate)
    assert "spare.weight" in certificate._repr_html_()


def test_a_fit_without_a_step_says_nothing_about_trainable_tensors(tmp_path: Path) -> None:
    """A run that had already reached its end changes nothing, and claims nothing."""
    trainer = quiet_trainer(frozen_network())
    trainer.fit(points(), epochs=1)
    saved = trainer.save_checkpoint(tmp_path / "a")
    other = quiet_trainer(frozen_network())
    certificate = other.fit(points(), epochs=1, resume_from=saved).certificate
    assert certificate is not None
    assert certificate.idle == ()


def test_only_small_trainable_tensors_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate tells how many were too large, and makes no claim about them."""
    module = "finetunelib.finetuning._freezing.fingerprint"
    monkeypatch.setattr(f"{module}._AFFORDABLE", 40)
    certificate = fit(quiet_trainer(WithSpare(), lr=0.1))
    assert certificate is not None
    assert certificate.idle == ("spare.bias",)
    assert certificate.uncompared == 2
