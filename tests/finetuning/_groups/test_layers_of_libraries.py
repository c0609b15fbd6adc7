"""The layers of models of torchvision, timm and transformers."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from finetunelib.finetuning import parameter_groups


def depths(model: nn.Module, **arguments: Any) -> dict[str, int]:
    """Return how many layers each parameter is away from the head, from its learning rate."""
    groups = parameter_groups(model, 1.0, decay=0.5, **arguments)
    return {
        name: [0.5**depth for depth in range(40)].index(group["lr"])
        for names, group in zip(groups.names, groups, strict=True)
        for name in names
    }


def test_resnet_has_a_layer_per_block() -> None:
    """The stem is the deepest, with its norm."""
    import torchvision

    found = depths(torchvision.models.resnet18())
    assert found["fc.bias"] == 0
    assert found["layer4.1.conv1.weight"] == 1
    assert found["layer1.0.bn2.weight"] == 8
    assert found["conv1.weight"] == found["bn1.bias"] == 9


def test_vision_transformer_has_the_layers_of_timm() -> None:
    """Patches, tokens and positions are one layer; the last norm belongs to the last block."""
    import timm

    model = timm.create_model("vit_tiny_patch16_224", depth=4)
    found = depths(model)
    assert found["head.weight"] == 0
    assert found["blocks.3.attn.qkv.weight"] == found["norm.weight"] == 1
    assert found["blocks.0.mlp.fc1.weight"] == 4
    deepest = {found[n] for n in ("patch_embed.proj.weight", "cls_token", "pos_embed")}
    assert deepest == {5}


@pytest.mark.parametrize("vocabulary", [100, 5000])
def test_encoder_has_a_layer_per_block_whatever_its_vocabulary(vocabulary: int) -> None:
    """The embeddings of a small model can have most of its parameters."""
    import transformers

    config = transformers.BertConfig(
        num_hidden_layers=3,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=vocabulary,
    )
    found = depths(transformers.BertForSequenceClassification(config))
    assert found["classifier.weight"] == 0
    assert found["bert.pooler.dense.weight"] == 1
    layers = [found[f"bert.encoder.layer.{n}.output.dense.weight"] for n in range(3)]
    assert layers == [4, 3, 2]
    embeddings = {depth for name, depth in found.items() if "embeddings" in name}
    assert embeddings == {5}
