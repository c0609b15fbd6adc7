"""From `get_peft_model` to a verified ONNX file: train, save the adapters, load, merge, export."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from finetunelib import Trainer, build_mlp, export_onnx, freeze_and_replace_head
from finetunelib.callbacks import ModelCheckpoint
from finetunelib.errors import (
    CheckpointError,
    DiagnosisWarning,
    InvalidArgumentError,
    InvalidTargetError,
    WeightsMismatchError,
)
from finetunelib.finetuning import load_weights, save_weights
from finetunelib.training import TokenTask

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = torch.randint(1, 40, (8, 6), generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(8) % 3
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@dataclass
class Case:
    """A pretrained model, its adapters and its data.

    Attributes:
        exported: Whether the merged model is exported, which is slow.
    """

    base: Callable[[], nn.Module]
    config: Mapping[str, Any]
    inputs: dict[str, Tensor]
    batch: Any
    options: Mapping[str, Any]
    exported: bool = False


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        **SMALL, intermediate_size=32, image_size=16, patch_size=8, num_labels=3
    )
    model: nn.Module = transformers.ViTForImageClassification(config)
    return model


def timm_vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)
    return model


def bert() -> nn.Module:
    config = transformers.BertConfig(
        **SMALL, vocab_size=40, intermediate_size=32, max_position_embeddings=8, num_labels=3
    )
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        **SMALL,
        vocab_size=40,
        intermediate_size=32,
        max_position_embeddings=8,
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
CASES = {
    "vit": Case(
        vit,
        {"target_modules": "all-linear", "modules_to_save": ["classifier"]},
        {"pixel_values": IMAGES},
        ({"pixel_values": IMAGES}, CLASSES),
        {},
    ),
    "timm": Case(
        timm_vit,
        {"target_modules": ["qkv", "proj", "fc1", "fc2"], "modules_to_save": ["head"]},
        {"x": IMAGES},
        (IMAGES, CLASSES),
        {},
        exported=True,
    ),
    "bert": Case(
        bert,
        {"task_type": "SEQ_CLS", "lora_dropout": 0.1},
        TEXT,
        (TEXT, CLASSES),
        {},
        exported=True,
    ),
    "llama": Case(
        llama,
        {"task_type": "CAUSAL_LM", "modules_to_save": ["lm_head"]},
        TEXT,
        [{**TEXT, "labels": IDS}],
        {"task": TokenTask(shift=True)},
        exported=True,
    ),
}


def adapted(case: Case, **more: Any) -> nn.Module:
    """Return a new model with adapters, with the same base each time."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about tied heads.
        torch.manual_seed(0)
        model = peft.get_peft_model(case.base(), peft.LoraConfig(**{**case.config, **more}))
    assert isinstance(model, nn.Module)
    return model


def outputs(model: nn.Module, case: Case) -> Tensor:
    """Return the logits in eval mode."""
    with torch.no_grad():
        found: Any = model.eval()(**case.inputs)
    logits: Tensor = found if isinstance(found, Tensor) else found.logits
    return logits


def modules_of(model: nn.Module) -> list[tuple[str, type[nn.Module]]]:
    """Return the names and the types of all modules."""
    return [(name, type(module)) for name, module in model.named_modules()]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_adapters_are_trained_saved_loaded_merged_and_exported(tmp_path: Path, name: str) -> None:
    """Loaded adapters give the same bits; merged weights are rounded once more."""
    case = CASES[name]
    model = adapted(case)
    untrained = outputs(model, case)
    trainer = Trainer(
        model, optimizer=torch.optim.AdamW, lr=0.02, progress=False, batch_size=8, **case.options
    )
    certificate = trainer.fit(case.batch, epochs=3).certificate
    assert certificate is not None
    assert not certificate.moved
    assert not certificate.idle
    trained = outputs(model, case)
    assert (trained - untrained).abs().max() > 1e-2

    path = save_weights(model, tmp_path / "adapters.safetensors", trainable_only=True)
    loaded = adapted(case)
    report = load_weights(loaded, path, trainable_only=True)
    assert set(report.verified) >= set(certificate.digests)
    assert torch.equal(outputs(loaded, case), trained)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft says that a trained copy of the head is not tied.
        merged = merged_with_adapters(copy.deepcopy(loaded))
    base = case.base()
    assert modules_of(merged) == modules_of(base)  # Nothing of peft is left.
    assert merged.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(outputs(merged, case), trained, rtol=0, atol=1e-5)
    if case.exported:
        exported = export_onnx(merged, tmp_path / "merged.onnx", case.inputs)
        assert exported.verification is not None
        assert exported.verification.status == "verified"


def merged_with_adapters(model: Any) -> nn.Module:
    """Return the base model with the adapters added to its weights."""
    merged = model.merge_and_unload()
    assert isinstance(merged, nn.Module)
    return merged


POINTS = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def small(**config: Any) -> Any:
    """Return a small network with adapters and a head that is trained in full."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3))
        lora = {"target_modules": ["0", "2"], "modules_to_save": ["3"], **config}
        return peft.get_peft_model(base, peft.LoraConfig(**lora))


def trainer_of(model: nn.Module, **options: Any) -> Trainer:
    """Return a silent Trainer."""
    return Trainer(
        model, optimizer=torch.optim.AdamW, lr=0.02, progress=False, batch_size=4, **options
    )


@pytest.mark.parametrize("config", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_checkpoints_hold_the_adapters_alone_and_resume_with_the_same_bits(
    tmp_path: Path, config: dict[str, bool]
) -> None:
    """The base is in no checkpoint; another base is refused."""
    whole, part = small(**config), small(**config)
    trainer_of(whole).fit(POINTS, epochs=4)
    callbacks = [ModelCheckpoint(tmp_path, every_n_steps=2)]
    trainer_of(part, callbacks=callbacks).fit(POINTS, max_steps=5)
    newest = max(tmp_path.glob("epoch-*"))
    names = set(safetensors.torch.load_file(newest / "model.safetensors"))
    assert names == {name for name, p in part.named_parameters() if p.requires_grad}
    resumed = small(**config)
    trainer_of(resumed, callbacks=callbacks).fit(POINTS, epochs=4, resume_from=newest)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    other = small(**config)
    nn.init.ones_(other.get_parameter("base_model.model.2.base_layer.bias"))
    with pytest.raises(CheckpointError, match=r"`base_model\.model\.2\.base_layer\.bias`"):
        trainer_of(other, callbacks=callbacks).fit(POINTS, epochs=5, resume_from=tmp_path)


def test_the_first_step_moves_one_of_the_two_matrices() -> None:
    """The certificate says what was seen after one step, and nothing once both have moved."""
    trainer = Trainer(small(), lr=0.1, progress=False, batch_size=4)
    certificate = trainer.fit(POINTS, max_steps=1).certificate
    assert certificate is not None
    assert certificate.idle
    assert all(".lora_A." in name for name in certificate.idle)
    certificate = trainer.fit(POINTS, epochs=1).certificate
    assert certificate is not None
    assert certificate.idle == ()


def test_the_active_one_of_two_adapters_is_trained_and_saved(tmp_path: Path) -> None:
    """The other one counts as a part of the base, and has to be active to be loaded."""
    model = small()
    model.add_adapter("other", peft.LoraConfig(target_modules=["0"], modules_to_save=["3"]))
    model.set_adapter("other")
    certificate = trainer_of(model).fit(POINTS, epochs=2).certificate
    assert certificate is not None
    assert any(".default." in name for name in certificate.digests)
    path = save_weights(model, tmp_path / "other.safetensors", trainable_only=True)
    assert all(".other." in name for name in safetensors.torch.load_file(path))
    assert load_weights(model, path, trainable_only=True).match == 1.0
    model.set_adapter("default")
    with pytest.raises(WeightsMismatchError, match="activate the same adapter"):
        load_weights(model, path, trainable_only=True)


def test_disabled_adapters_give_the_base_and_cannot_be_trained() -> None:
    """The error says how they are enabled."""
    model = small()
    trainer = trainer_of(model)
    untrained = trainer.predict(POINTS[0])
    trainer.fit(POINTS, epochs=2)
    trained = trainer.predict(POINTS[0])
    with model.disable_adapter():
        assert torch.equal(trainer.predict(POINTS[0]), untrained)
        with pytest.raises(InvalidArgumentError, match="disable_adapter"):
            trainer.fit(POINTS, epochs=1)
    assert torch.equal(trainer.predict(POINTS[0]), trained)


def test_a_new_head_that_peft_froze_is_reported() -> None:
    """With the argument that trains it; a head in `modules_to_save` is not reported."""

    def fit(**config: Any) -> None:
        base = freeze_and_replace_head(build_mlp(6, [8], 5, seed=0), num_classes=3)
        model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["backbone.1"], **config))
        trainer_of(model).fit(POINTS, epochs=1)

    with pytest.warns(DiagnosisWarning, match=r'`modules_to_save=\["head"\]`.*new-head-frozen'):
        fit()
    fit(modules_to_save=["head"])


@pytest.mark.slow
def test_prompt_tuning_needs_labels_for_the_virtual_tokens() -> None:
    """The error says what to do, which works."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        model = peft.get_peft_model(llama(), config)
    trainer = trainer_of(model, task=TokenTask(shift=True))
    with pytest.raises(InvalidTargetError, match="The logits have 4 more positions"):
        trainer.fit([{**TEXT, "labels": IDS}], epochs=1)
    labels = torch.cat([torch.full((len(IDS), 4), -100), IDS], dim=1)
    certificate = trainer.fit([{**TEXT, "labels": labels}], epochs=2).certificate
    assert certificate is not None
    assert not certificate.idle
