"""Models of transformers with one class for each token, and a model with several inputs.

Each has the weights of its hand-written loop bit for bit; the loop of a model of transformers uses
the loss that the model computes itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import Trainer
from finetunelib.errors import InvalidArgumentError, InvalidInputError, InvalidTargetError
from finetunelib.training import TokenTask
from integration.programs import Program, numbers, seeded

transformers = pytest.importorskip("transformers")

WORDS, TAGS, PAD = 24, 5, 0
LENGTHS = (3, 8, 5, 2, 8, 4)


def rows(seed: int, high: int) -> Tensor:
    """Return rows of indices from 1, padded on the right to different lengths."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(1, high, (len(LENGTHS), max(LENGTHS)), generator=generator)
    return found * mask()


def mask() -> Tensor:
    """Return 1 for each token, and 0 for padding."""
    return (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()


def batch(labels: Tensor, seed: int) -> dict[str, Tensor]:
    """Return a batch as a data collator makes it: the labels of padding are -100."""
    masked = labels.masked_fill(mask() == 0, -100)
    return {"input_ids": rows(seed, WORDS), "attention_mask": mask(), "labels": masked}


TAGGED = [batch(rows(seed + 9, TAGS), seed) for seed in range(2)]
TEXTS = [batch(rows(seed, WORDS), seed) for seed in range(2)]


def bert() -> nn.Module:
    """Return a tiny BERT that labels tokens."""
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=TAGS,
    )
    model: nn.Module = transformers.BertForTokenClassification(config)
    return model


def gpt2() -> nn.Module:
    """Return a tiny GPT-2, whose head shares its weight with the embedding."""
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=16,
        bos_token_id=1,
        eos_token_id=2,
    )
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


def t5() -> nn.Module:
    """Return a tiny T5, an encoder-decoder."""
    config = transformers.T5Config(
        vocab_size=WORDS,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        pad_token_id=PAD,
        decoder_start_token_id=PAD,
    )
    model: nn.Module = transformers.T5ForConditionalGeneration(config)
    return model


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss that a model of transformers computes of its labels."""
    loss: Tensor = model(**batch).loss
    return loss


PROGRAMS: dict[str, tuple[Any, list[dict[str, Tensor]], bool]] = {
    "token classification": (bert, TAGGED, False),
    "causal language model": (gpt2, TEXTS, True),
    "encoder-decoder": (t5, TEXTS, False),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_model_of_transformers_is_trained_as_by_hand(name: str) -> None:
    """The mean loss, the perplexity and the predictions are those of the model."""
    make, data, shift = PROGRAMS[name]
    program = Program(make, own_loss, data)
    trainer = program.trained(data, task=TokenTask(shift=shift))
    found, model = trainer.evaluate(data), trainer.model.eval()
    with torch.no_grad():
        outputs = [model(**each) for each in data]
        counted = [each["labels"][:, int(shift) :].ne(-100).sum() for each in data]
        total = sum(
            float(out.loss) * int(count) for out, count in zip(outputs, counted, strict=True)
        )
    loss = total / int(sum(counted))
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    predicted = trainer.predict(data)
    assert [len(row) for row in predicted] == [*LENGTHS, *LENGTHS]
    assert torch.equal(predicted[0], outputs[0].logits[0, : LENGTHS[0]])


def counting(seen: list[int]) -> Callable[[nn.Module, object, Tensor], None]:
    """Return a hook that notes how many logits a layer makes for one class."""

    def hook(_: nn.Module, __: object, output: Tensor) -> None:
        seen.append(output[..., 0].numel())

    return hook


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_step_in_chunks_has_the_same_loss_and_gradients(name: str) -> None:
    """The head of each model is found, so the logits as a whole are never computed."""
    make, data, shift = PROGRAMS[name]
    results = []
    for size in (None, 7, 1000):
        model = seeded(make).eval()
        largest = [0]
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features in (WORDS, TAGS):
                module.register_forward_hook(counting(largest))
        output = TokenTask(shift=shift, chunk_size=size).step(model, data[0])
        torch.autograd.backward(output.loss)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((output.loss.detach(), gradients, max(largest)))
    (loss, plain, everything), (chunked, others, most), (whole, same, _) = results
    assert (everything, most) == (mask().numel(), max(LENGTHS))
    assert torch.allclose(loss, chunked, rtol=1e-6)
    assert torch.equal(loss, whole)
    assert len(plain) == len(others) == len(same)
    for one, other, third in zip(plain, others, same, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
        assert torch.equal(one, third)


def test_accumulated_micro_batches_of_a_language_model_are_one_batch() -> None:
    """Each token counts equally, though the micro-batches have different numbers of tokens."""
    (whole,) = TEXTS[:1]
    parts = [{name: rows[at : at + 2] for name, rows in whole.items()} for at in (0, 2, 4)]
    trained = []
    for data, steps in (([whole], 1), (parts, 3)):
        trainer = Trainer(
            seeded(gpt2).eval(),
            task=TokenTask(shift=True),
            gradient_accumulation_steps=steps,
            progress=False,
        )
        for module in trainer.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trainer.fit(data, epochs=2)
        trained.append(trainer.model)
    for one, other in zip(*(model.parameters() for model in trained), strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)


def test_a_wrong_shift_is_refused_for_each_kind_of_model() -> None:
    """The class of the model or the labels tell, and the hint is right."""
    for make, data, task, kind, words in (
        (gpt2, TEXTS, TokenTask(), InvalidTargetError, "TokenTask(shift=True)"),
        (bert, TAGGED, TokenTask(shift=True), InvalidArgumentError, "TokenTask()"),
        (t5, TEXTS, TokenTask(shift=True), InvalidArgumentError, "encoder-decoder"),
        (gpt2, TEXTS, None, InvalidTargetError, "TokenTask(shift=True)"),
        (bert, TAGGED, None, InvalidTargetError, "TokenTask()"),
        (t5, TEXTS, None, InvalidInputError, "task=TokenTask()"),
    ):
        with pytest.raises(kind) as caught:
            Trainer(seeded(make), task=task, progress=False).fit(data, epochs=1)
        assert words in str(caught.value)
    leaking = [each | {"decoder_input_ids": rows(0, WORDS)} for each in TEXTS[:1]]
    with pytest.raises(InvalidTargetError, match="decoder_input_ids"):
        Trainer(seeded(t5), task=TokenTask(), progress=False).fit(leaking, epochs=1)
    inputs = {name: value for name, value in TEXTS[0].items() if name != "labels"}
    trainer = Trainer(seeded(t5), task=TokenTask(), progress=False)
    with pytest.raises(InvalidInputError, match="generate"):
        trainer.predict(inputs)
    assert [len(row) for row in trainer.predict(TEXTS[0])] == list(LENGTHS)


def test_a_soft_cap_after_the_head_is_kept_in_chunks() -> None:
    """The head is then not the last operation, so only the loss is computed in chunks."""
    config = transformers.Gemma2Config(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
    )
    model = seeded(lambda: transformers.Gemma2ForCausalLM(config)).eval()
    losses = [
        TokenTask(shift=True, chunk_size=size).step(model, TEXTS[0]).loss.detach()
        for size in (None, 7)
    ]
    assert torch.allclose(losses[0], losses[1], rtol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(losses[0], own_loss(model, TEXTS[0]), rtol=1e-6)


class ImageAndNumbers(nn.Module):
    """A model with two inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8 + 3, 4)

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(torch.cat([self.image(image), numbers], 1))
        return logits


def test_several_inputs_in_memory() -> None:
    """A dict of tensors is passed by name."""
    inputs = {"image": numbers(90, 1, 4, 4), "numbers": numbers(90, 3, seed=1)}
    targets = torch.arange(90) % 4
    program = Program(
        ImageAndNumbers,
        lambda model, batch: nn.functional.cross_entropy(model(**batch[0]), batch[1]),
        (inputs, targets),
    )
    trainer = program.trained((inputs, targets))
    assert torch.equal(trainer.predict(inputs), trainer.model.eval()(**inputs).detach())
    assert trainer.history["val_accuracy"][-1] == trainer.evaluate((inputs, targets))["accuracy"]
