"""Tests of gradient checkpointing: the same bits, less memory, an unchanged model."""

from __future__ import annotations

import copy
import random
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetunelib import Trainer, build_mlp, freeze_and_replace_head
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.finetuning import freeze
from finetunelib.training import Callback, StepOutput, Task, TokenTask, TrainContext, find_lr

INPUTS = torch.randn(26, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(26) % 3
DATA = (INPUTS, TARGETS)


class Block(nn.Module):
    """A block whose result depends on all that a second run could change."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        """Draw from three generators, count, and write to buffers in two ways."""
        self.calls += 1
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        if random.random() < 0.5:
            x = x + float(np.random.rand())  # noqa: NPY002 - as modules do
        inner = self.spectral(self.norm(self.linear(x)).relu())
        output: Tensor = x + self.dropout(inner) * (1 + self.mean) * self.calls
        return output


def network() -> nn.Sequential:
    """Return a network of three blocks between two layers."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Block() for _ in range(3)))
    return nn.Sequential(nn.Linear(4, 8), blocks, nn.Linear(8, 3))


def trained(model: nn.Module, chosen: Any, **options: Any) -> nn.Module:
    """Train a model for two epochs."""
    quiet: dict[str, Any] = {"batch_size": 6, "progress": False, "device": "cpu"}
    Trainer(model, gradient_checkpointing=chosen, **(quiet | options)).fit(DATA, epochs=2)
    return model


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Assert that two models have the same bits."""
    state = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bf16-mixed"}, {"gradient_accumulation_steps": 2, "max_grad_norm": 1.0}],
    ids=["plain", "bf16", "accumulation"],
)
@pytest.mark.parametrize("chosen", [["1.*"], ["1"]], ids=["each", "all"])
def test_bits_are_those_without(options: dict[str, Any], chosen: list[str]) -> None:
    """Dropout, other random numbers, BatchNorms, spectral norms and counters included."""
    plain, checkpointed = (
        trained(network(), False, **options),
        trained(network(), chosen, **options),
    )
    assert_same(plain, checkpointed)
    for one, other in zip(plain[1], checkpointed[1], strict=True):  # type: ignore[index]
        assert one.calls == other.calls


def test_model_is_left_as_it_was() -> None:
    """No attribute stays, also after an error and in a copy that a callback makes."""

    class Copies(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            self.copy = copy.deepcopy(context.model)

    model, copies = network(), Copies()
    names = [set(vars(module)) for module in model.modules()]
    trained(model, ["1.*"], callbacks=[copies])
    assert [set(vars(module)) for module in model.modules()] == names
    assert [set(vars(module)) for module in copies.copy.modules()] == names
    with pytest.raises(InvalidArgumentError):
        trained(model, ["1.*"], loss_fn=lambda outputs, targets: (outputs * targets.sum())[:, 0])
    assert [set(vars(module)) for module in model.modules()] == names


class Watching(Task):
    """Keeps a weak reference to a tensor inside a block, and looks whether it is alive."""

    def __init__(self) -> None:
        self.alive: list[bool] = []

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        """Run the model with a hook on an inner layer."""
        kept: list[Any] = []
        inner = model[1][0].linear  # type: ignore[index]
        with inner.register_forward_hook(lambda _, __, out: kept.append(weakref.ref(out))):
            outputs = model(batch[0])
        self.alive.append(kept[0]() is not None)
        loss = nn.functional.cross_entropy(outputs, batch[1])
        return StepOutput(loss, outputs, batch[1], len(outputs))


@pytest.mark.parametrize("chosen", [False, ["1.*"]], ids=["without", "with"])
def test_activations_are_not_kept(chosen: Any) -> None:
    """A tensor inside a block exists after the forward pass only without checkpointing."""
    task = Watching()
    trained(network(), chosen, task=task, batch_size=13)
    assert task.alive == [chosen is False] * len(task.alive)


def test_frozen_blocks_stay_frozen() -> None:
    """Their parameters and buffers keep their bits, and the others have the bits without."""
    models = []
    for chosen in (False, ["1.*"]):
        model = network()
        freeze(model, ["0", "1.0", "1.1"])
        block = model.get_submodule("1.1")
        before = {name: value.clone() for name, value in block.state_dict().items()}
        models.append(trained(model, chosen))
        after = block.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert not block.training
    assert_same(*models)


def test_cached_features_and_rate_finder() -> None:
    """A checkpointed head of a frozen backbone is trained on its cached features."""
    models = []
    for chosen in (False, ["head.*"]):
        model = build_mlp(4, [8], 3, seed=0)
        torch.manual_seed(1)
        head = nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        freeze_and_replace_head(model, head=head)
        trainer = Trainer(model, gradient_checkpointing=chosen, batch_size=6, progress=False)
        curve = find_lr(trainer, DATA, steps=20).losses
        assert trainer.fit(DATA, epochs=2).cached_features
        models.append((model, curve))
    assert models[0][1] == models[1][1]
    assert_same(models[0][0], models[1][0])


def test_resumes_with_the_bits_of_a_run_without(tmp_path: Path) -> None:
    """A checkpoint of a run without checkpointing continues with it."""
    first = Trainer(network(), batch_size=6, progress=False, device="cpu")
    first.fit(DATA, max_steps=7)
    path = first.save_checkpoint(tmp_path / "middle")
    models = []
    for chosen in (False, ["1.*"]):
        trainer = Trainer(
            network(), batch_size=6, progress=False, device="cpu", gradient_checkpointing=chosen
        )
        trainer.fit(DATA, epochs=2, resume_from=path)
        models.append(trainer.model)
    assert_same(*models)


def test_accumulated_rows_of_tokens_equal_one_batch() -> None:
    """Four batches of four padded rows give the update of one of sixteen, to rounding."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (16, 12), generator=generator)
    lengths = torch.arange(16) % 11 + 2
    labels = tokens.masked_fill(torch.arange(12) >= lengths[:, None], -100)

    def fitted(chosen: Any, rows: int) -> nn.Module:
        torch.manual_seed(0)
        blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)))
        model = nn.Sequential(nn.Embedding(20, 8), blocks, nn.Linear(8, 20))
        trainer = Trainer(
            model,
            task=TokenTask(shift=True, chunk_size=16),
            lr=0.5,
            batch_size=rows,
            gradient_accumulation_steps=16 // rows,
            gradient_checkpointing=chosen,
            progress=False,
        )
        trainer.fit((tokens, labels), epochs=3)
        return model

    whole, parts = fitted(False, 16), fitted(False, 4)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)
    assert_same(parts, fitted(["1.*"], 4))
    assert_same(whole, fitted(["1.*"], 16))


@pytest.mark.parametrize(
    ("chosen", "error", "words"),
    [
        (True, InvalidArgumentError, r'\["1\.\*"\]'),
        (["0.weight"], InvalidArgumentError, "parameters only"),
        (["9"], InvalidArgumentError, "9"),
        ([], InvalidArgumentError, "empty"),
        ("1", InvalidTypeError, "sequence"),
        ([1], InvalidTypeError, r"\[1\]"),
        (None, InvalidTypeError, "None"),
    ],
)
def test_wrong_blocks_are_refused(chosen: Any, error: type[Exception], words: str) -> None:
    """The message says how the blocks of this model can be named."""
    with pytest.raises(error, match=words):
        Trainer(network(), gradient_checkpointing=chosen)


def test_containers_without_forward_are_refused() -> None:
    """A ModuleList is not called, so it would be without effect."""
    model = nn.Sequential(nn.Linear(4, 3))
    model.parts = nn.ModuleList([nn.Linear(3, 3)])
    with pytest.raises(InvalidArgumentError, match=r'\["parts\.\*"\]'):
        Trainer(model, gradient_checkpointing=["parts"])


def test_compiled_models_are_refused() -> None:
    """torch.compile has a choice of its own."""
    with pytest.raises(InvalidArgumentError, match="compile"):
        Trainer(network(), gradient_checkpointing=["1.*"], compile=True)


def test_blocks_that_do_not_run_are_reported() -> None:
    """A block that the model does not call saves nothing."""

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.block = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.used(x) + nn.functional.linear(x, self.block.weight)
            return output

    with pytest.warns(UserWarning, match="no effect on the first step.*`block`"):
        trained(Skips(), ["block"], ignore=["parameter-without-gradient"])


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [True, ["*.layers.*"]], ids=["own", "named"])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_adapters_of_a_language_model(chosen: Any) -> None:
    """The embeddings are frozen, so no input of a block needs a gradient. There is dropout."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    tokens = torch.randint(0, 64, (8, 12), generator=torch.Generator().manual_seed(0))

    def fitted(checkpointing: Any) -> nn.Module:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            attention_dropout=0.1,
        )
        adapters = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
        model: nn.Module = peft.get_peft_model(transformers.LlamaForCausalLM(config), adapters)
        trainer = Trainer(
            model,
            task=TokenTask(shift=True, chunk_size=16),
            batch_size=4,
            lr=0.1,
            progress=False,
            gradient_checkpointing=checkpointing,
        )
        trainer.fit((tokens, tokens), epochs=2)
        return model

    plain, checkpointed = fitted(False), fitted(chosen)
    assert_same(plain, checkpointed)
    assert not any(getattr(part, "gradient_checkpointing", False) for part in plain.modules())
    flags = [getattr(part, "gradient_checkpointing", False) for part in checkpointed.modules()]
    assert not any(flags)
    assert not any("_gradient_checkpointing_func" in vars(m) for m in checkpointed.modules())


@pytest.mark.slow
def test_models_of_timm() -> None:
    """Their own checkpointing has the same bits. With BatchNorms, blocks are named instead."""
    timm = pytest.importorskip("timm")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    data = (images, torch.arange(4) % 3)

    def fitted(name: str, chosen: Any, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name, num_classes=3, **options)
        trainer = Trainer(model, batch_size=2, progress=False, gradient_checkpointing=chosen)
        trainer.fit(data, epochs=1)
        return model

    vit = {"img_size": 32, "depth": 2, "drop_path_rate": 0.2}
    own = fitted("vit_tiny_patch16_224", True, **vit)
    assert not own.grad_checkpointing
    assert_same(fitted("vit_tiny_patch16_224", False, **vit), own)
    with pytest.raises(InvalidArgumentError, match=r'\["layer1\.\*", "layer2\.\*"'):
        fitted("test_resnet", True)
    assert_same(fitted("test_resnet", False), fitted("test_resnet", ["layer?.*"]))
