"""Further models for tests of exports: timm, dense predictions, and kinds of transformers.

All are built from small configurations with random weights, and nothing is downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from conformance.export_models import (
    IMAGES,
    TEXT,
    ExportModel,
    fill_statistics,
    images,
    normal,
    texts,
)

_TIMM = {
    "convnext_atto": 64,
    "deit_tiny_patch16_224": 64,
    "edgenext_xx_small": 64,
    "efficientnet_lite0": 64,
    "ghostnet_050": 64,
    "levit_128s": 224,
    "mobilenetv3_small_050": 64,
    "mobilevit_xxs": 64,
    "poolformer_s12": 64,
    "regnetx_002": 64,
    "repvgg_a0": 64,
    "resnet10t": 64,
}

_SEGMENTATION = (
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
)

#: Detection models whose raw boxes and scores are exported, before boxes are selected.
_DETECTION = {
    "fcos_resnet50_fpn": 128,
    "retinanet_resnet50_fpn": 128,
    "ssdlite320_mobilenet_v3_large": 320,
}

_SIZES = TEXT | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_T5 = {
    "vocab_size": 40,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
}
_BART = {
    "vocab_size": 40,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 2,
}

_ENCODERS: dict[str, dict[str, Any]] = {
    "AlbertForSequenceClassification": {"embedding_size": 16},
    "ElectraForSequenceClassification": {"embedding_size": 16},
    "MPNetForTokenClassification": {},
    "ModernBertForSequenceClassification": {"cls_token_id": 1, "sep_token_id": 2},
    "RobertaForTokenClassification": {"max_position_embeddings": 60},
}

_DECODERS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 40,
        "vocab_size": 40,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "GPTNeoXForCausalLM": _SIZES,
    "LlamaForCausalLM": {**_SIZES, "num_key_value_heads": 2},
    "MistralForCausalLM": {**_SIZES, "num_key_value_heads": 2, "sliding_window": 16},
    "OPTForCausalLM": {
        **{name: size for name, size in _SIZES.items() if name != "intermediate_size"},
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    "Qwen2ForCausalLM": {**_SIZES, "num_key_value_heads": 2},
}

_ENCODER_DECODERS = {
    "BartForConditionalGeneration": _BART,
    "MarianMTModel": _BART,
    "T5ForConditionalGeneration": {**_T5, "decoder_start_token_id": 0},
}

_PATCHES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_VISION: dict[str, dict[str, Any]] = {
    "BeitForImageClassification": _PATCHES,
    "DeiTForImageClassification": _PATCHES,
    "Dinov2ForImageClassification": {**_PATCHES, "mlp_ratio": 2},
    "ResNetForImageClassification": {
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 16, 32],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
    "SegformerForSemanticSegmentation": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 16, 32],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    },
}

_WAVE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16, 16],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 40,
}
_AUDIO: dict[str, dict[str, Any]] = {
    "ASTForAudioClassification": {
        **{name: size for name, size in _PATCHES.items() if name != "image_size"},
        "max_length": 32,
        "num_mel_bins": 16,
    },
    "HubertForSequenceClassification": _WAVE,
    "Wav2Vec2ForCTC": _WAVE,
}

_LENGTHS = {"input_ids": {1: "length"}, "attention_mask": {1: "length"}}


def library_models() -> list[ExportModel]:
    """Return the models of all libraries."""
    return [*_timm_models(), *_dense_models(), *_text_models(), *_other_models()]


def _timm_models() -> list[ExportModel]:
    return [
        ExportModel("timm", name, "timm", f"3 x {size} x {size}", partial(_timm, name, size))
        for name, size in _TIMM.items()
    ]


def _dense_models() -> list[ExportModel]:
    sides = {"x": {2: "height", 3: "width"}}
    return [
        *(
            ExportModel(
                "torchvision.segmentation",
                name,
                "segmentation",
                "3 x any x any",
                partial(_masks, name),
                sides,
            )
            for name in _SEGMENTATION
        ),
        *(
            ExportModel(
                "torchvision.detection",
                name,
                "detection",
                f"3 x {size} x {size}",
                partial(_boxes, name, size),
            )
            for name, size in _DETECTION.items()
        ),
    ]


def _text_models() -> list[ExportModel]:
    both = {**_LENGTHS, "decoder_input_ids": {1: "decoder_length"}}
    kinds: list[tuple[str, Mapping[str, dict[str, Any]], Mapping[str, Mapping[int, str]]]] = [
        ("encoder", {name: {**_SIZES, **own} for name, own in _ENCODERS.items()}, _LENGTHS),
        ("decoder", _DECODERS, _LENGTHS),
        ("encoder-decoder", _ENCODER_DECODERS, both),
    ]
    return [
        ExportModel(
            "transformers",
            name,
            family,
            "texts of any length",
            partial(_transformers, name, options, partial(_tokens, family)),
            lengths,
        )
        for family, models, lengths in kinds
        for name, options in models.items()
    ]


def _other_models() -> list[ExportModel]:
    return [
        ExportModel(
            "transformers",
            name,
            family,
            shape,
            partial(_transformers, name, options, partial(example, name)),
        )
        for family, models, shape, example in (
            ("vision", _VISION, "3 x 32 x 32", _pixels),
            ("audio", _AUDIO, "sounds", _sounds),
        )
        for name, options in models.items()
    ]


def _timm(name: str, size: int) -> tuple[nn.Module, Tensor]:
    import timm

    torch.manual_seed(0)
    # A vision transformer is built for one image size.
    own: dict[str, Any] = {"img_size": size} if name.startswith("deit") else {}
    model: nn.Module = timm.create_model(name, num_classes=10, **own)
    fill_statistics(model, size)
    for key, parameter in model.named_parameters():
        if "layer_scale" in key or key.endswith("gamma"):
            nn.init.ones_(parameter)  # The initial 1e-6 would hide the branches.
    timm_model: Any = model
    heads = timm_model.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                normal(layer)
    return model.eval(), images(size)


def _masks(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    fill_statistics(model, 64)
    return _FirstOutput(model).eval(), images(64)


def _boxes(name: str, size: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    raw = _RawDetections(model).eval()
    fill_statistics(raw, size)
    for key, parameter in model.named_parameters():
        if "head" in key and parameter.dim() == 4:
            # The initial weights are so small that the biases are all that shows.
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return raw, images(size)


class _FirstOutput(nn.Module):
    """A segmentation model without its auxiliary output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the classes for each pixel."""
        scores: Tensor = self.model(x)["out"]
        return scores


class _RawDetections(nn.Module):
    """The backbone and the head of a detection model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the raw outputs of the head for all anchors."""
        outputs: dict[str, Tensor] = self.head(list(self.backbone(x).values()))
        return outputs


def _transformers(
    name: str, options: Mapping[str, Any], example: Callable[[], dict[str, Tensor]]
) -> tuple[nn.Module, dict[str, Tensor]]:
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They are about the weights that were not loaded.
        config = kind.config_class(**options)
        if hasattr(config, "use_cache"):
            config.use_cache = False
        model: nn.Module = kind(config)
    fill = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if fill:
        fill_statistics(model, 32)
    return model.eval(), example()


def _tokens(family: str) -> dict[str, Tensor]:
    found = texts(40)
    if family == "encoder-decoder":
        generator = torch.Generator().manual_seed(1)
        found["decoder_input_ids"] = torch.randint(3, 40, (IMAGES, 9), generator=generator)
    return found


def _pixels(_name: str) -> dict[str, Tensor]:
    return {"pixel_values": images(32)}


def _sounds(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (IMAGES, 32, 16) if name.startswith("AST") else (IMAGES, 1000)
    return {"input_values": torch.randn(shape, generator=generator)}
