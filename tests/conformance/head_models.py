"""The models for tests of finding heads, each with its expected head.

The models are built without weights on the meta device. Text models of transformers are an
exception, because they read the values of their inputs. Those are small.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.models
import transformers
from torch import Tensor, nn
from torchvision.models import regnet

HEAD_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: Models of every timm family, including the smallest, and variants with several heads.
TIMM = [
    "beit_base_patch16_224",
    "caformer_s18",
    "cait_xxs24_224",
    "coat_mini",
    "coat_small",
    "coat_tiny",
    "coatnet_0_224",
    "convformer_s18",
    "convit_small",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto",
    "convnext_nano",
    "convnext_pico",
    "cpubone_nano",
    "cpubone_s0",
    "cpubone_t0",
    "crossvit_15_240",
    "crossvit_9_240",
    "crossvit_tiny_240",
    "cs3darknet_focus_s",
    "csatv2",
    "csatv2_21m",
    "cspnext_s",
    "cspnext_tiny",
    "darknet17",
    "darknet21",
    "davit_small",
    "davit_tiny",
    "deepseek_vit_412m",
    "deit3_small_patch16_224",
    "deit_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit_tiny_patch16_224",
    "densenet121",
    "densenet169",
    "densenet264d",
    "dla102",
    "dla34",
    "dla60",
    "dpn131",
    "dpn48b",
    "dpn68",
    "eca_halonext26ts",
    "edgenext_small",
    "edgenext_x_small",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientformerv2_s1",
    "efficientformerv2_s2",
    "efficientvim_m1",
    "efficientvim_m2",
    "efficientvim_m3",
    "efficientvit_b0",
    "efficientvit_b1",
    "efficientvit_b2",
    "efficientvit_m0",
    "efficientvit_m1",
    "efficientvit_m2",
    "eva02_small_patch14_224",
    "eva02_tiny_patch14_224",
    "eva02_tiny_patch14_336",
    "fasternet_s",
    "fasternet_t0",
    "fasternet_t1",
    "fastvit_s12",
    "fastvit_t12",
    "fastvit_t8",
    "fbnetv3_d",
    "focalnet_small_lrf",
    "focalnet_tiny_lrf",
    "focalnet_tiny_srf",
    "gcvit_small",
    "gcvit_tiny",
    "gcvit_xxtiny",
    "gemma4_vit_167m",
    "gernet_s",
    "ghostnet_050",
    "ghostnet_100",
    "ghostnet_130",
    "gmlp_b16_224",
    "gmlp_s16_224",
    "halonet26t",
    "halonet_h1",
    "hardcorenas_a",
    "hardcorenas_b",
    "hardcorenas_c",
    "hgnetv2_b0",
    "hiera_small_224",
    "hiera_small_abswin_256",
    "hiera_tiny_224",
    "hieradet_small",
    "hrnet_w18",
    "hrnet_w18_small",
    "hrnet_w30",
    "iformer_s",
    "iformer_t",
    "inception_next_atto",
    "inception_next_small",
    "inception_next_tiny",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnet_035",
    "lcnetv2_small",
    "legacy_senet154",
    "legacy_seresnet18",
    "legacy_xception",
    "levit_128",
    "levit_256",
    "levit_256d",
    "lowformer_b0",
    "lowformer_b1",
    "lowformer_b2",
    "mambaout_kobe",
    "mambaout_tiny",
    "mixer_s16_224",
    "mixnet_s",
    "mobilenetv3_small_050",
    "mobilenetv5_base",
    "mobileone_s0",
    "mobilevit_s",
    "mobilevit_xs",
    "mobilevit_xxs",
    "mvitv2_small",
    "mvitv2_tiny",
    "naflexvit_base_patch16_gap",
    "nasnetalarge",
    "nest_small",
    "nest_tiny",
    "nextvit_small",
    "nfnet_f0",
    "pit_s_224",
    "pit_xs_224",
    "pnasnet5large",
    "poolformerv2_s12",
    "pvt_v2_b0",
    "pvt_v2_b1",
    "qwen3_vit_88m",
    "qwen3_vit_88m_enc",
    "rdnet_small",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repghostnet_058",
    "repvgg_a0",
    "repvit_m0_9",
    "repvit_m1",
    "res2net50_26w_4s",
    "res2net50d",
    "resnest14d",
    "resnest26d",
    "resnet18",
    "resnet26",
    "resnetv2_18",
    "resnetv2_34",
    "rexnet_100",
    "rexnet_130",
    "sam2_hiera_small",
    "sam2_hiera_tiny",
    "samvit_base_patch16_224",
    "selecsls42",
    "selecsls60",
    "sequencer2d_s",
    "shvit_s1",
    "shvit_s2",
    "skresnet18",
    "skresnet34",
    "starnet_s050",
    "starnet_s1",
    "swiftformer_s",
    "swiftformer_xs",
    "swin_s3_tiny_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_small_224",
    "swinv2_cr_tiny_224",
    "swinv2_small_window8_256",
    "swinv2_tiny_window8_256",
    "test_coatnet",
    "test_mambaout",
    "test_maxvit",
    "test_nfnet",
    "test_vit",
    "test_vit2",
    "test_vit_relpos",
    "tiny_vit_11m_224",
    "tiny_vit_5m_224",
    "tinynet_a",
    "tinynet_c",
    "tnt_s_legacy_patch16_224",
    "tnt_s_patch16_224",
    "tresnet_m",
    "twins_pcpvt_small",
    "twins_svt_small",
    "vgg11",
    "vgg13",
    "visformer_small",
    "visformer_tiny",
    "vit_relpos_small_patch16_224",
    "vit_small_patch16_lingbot",
    "vit_small_r26_s32_224",
    "vit_tiny_r_s16_p8_224",
    "vitamin_small_224",
    "volo_d1_224",
    "volo_d2_224",
    "vovnet39a",
    "vovnet57a",
    "xception41",
    "xception41p",
    "xcit_nano_12_p8_224",
    "xcit_tiny_12_p8_224",
]

#: Models with recurrent layers, which torch unrolls on the meta device. This takes minutes.
_WITH_DATA = ("sequencer2d_s",)

#: Models whose outputs come from another layer in addition to that of `get_classifier()`.
_MORE_HEADS = {"volo_d1_224": "aux_head", "volo_d2_224": "aux_head"}

#: The attributes in which models store their head.
_FIELDS = (
    "fc",
    "classifier",
    "head",
    "heads",
    "score",
    "classification_head",
    "logits_proj",
    "lm_head",
)


@dataclass(frozen=True, slots=True)
class HeadModel:
    """A model to find the head of.

    Attributes:
        library: The library that defines it.
        name: Its name in the library.
        build: Builds the model.
        example: Returns a batch that the model accepts.
        declared: Returns the layers that compute the outputs according to the library: one,
            several, or none for a headless model.
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    example: Callable[[nn.Module], Tensor | Mapping[str, Tensor]]
    declared: Callable[[nn.Module], list[nn.Module]]


def torchvision_models() -> list[HeadModel]:
    """Return all classification models of torchvision."""
    return [
        HeadModel("torchvision", name, _torchvision(name), _images(name), _under_a_field)
        for name in torchvision.models.list_models(module=torchvision.models)
    ]


def timm_models(names: list[str] = TIMM) -> list[HeadModel]:
    """Return models of timm by name."""
    return [HeadModel("timm", name, _timm(name), _card_images, _classifier) for name in names]


def transformers_models() -> list[HeadModel]:
    """Return image, text, token and audio classifiers of transformers with small configurations."""
    images = [
        HeadModel("transformers", name, _from_config(name, size, "meta"), _pixels, _hugging_face)
        for name, size in _IMAGE_CONFIGS.items()
    ]
    texts = [
        HeadModel("transformers", name, _from_config(name, size, "cpu"), _tokens, _hugging_face)
        for name, size in _TEXT_CONFIGS.items()
    ]
    audio = [
        HeadModel("transformers", name, _from_config(name, size, "cpu"), _sound, _hugging_face)
        for name, size in _AUDIO_CONFIGS.items()
    ]
    return images + texts + audio


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Build models on the meta device, except that RegNet computes its widths on the CPU."""
    original = regnet.BlockParams.from_init_params

    def with_data(*args: Any, **options: Any) -> regnet.BlockParams:
        with torch.device("cpu"):
            return original(*args, **options)

    regnet.BlockParams.from_init_params = with_data
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Missing weights and deprecated names.
            yield
    finally:
        regnet.BlockParams.from_init_params = original


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with on_meta():
            options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
            return model

    return build


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        with contextlib.nullcontext() if name in _WITH_DATA else on_meta():
            model: nn.Module = timm.create_model(name, pretrained=False)
            return model

    return build


def _from_config(name: str, size: Mapping[str, Any], device: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        family = name.partition("For")[0]
        config = getattr(transformers, f"{_CONFIGS.get(name, family)}Config")(num_labels=5, **size)
        where = on_meta() if device == "meta" else contextlib.nullcontext()
        with where:
            model: nn.Module = getattr(transformers, name)(config)
            return model

    return build


def _images(name: str) -> Callable[[nn.Module], Tensor]:
    size = 299 if name == "inception_v3" else 224
    return lambda model: torch.empty(2, 3, size, size, device="meta")


def _card_images(model: nn.Module) -> Tensor:
    card: Any = model.pretrained_cfg
    device = next(model.parameters()).device
    return torch.zeros(2, *card["input_size"], device=device)


def _pixels(model: nn.Module) -> Tensor:
    size = getattr(model.config, "image_size", None) or 64
    return torch.empty(2, 3, size, size, device="meta")


def _tokens(model: nn.Module) -> Mapping[str, Tensor]:
    config: Any = model.config
    tokens = torch.arange(3, 9).expand(2, 6).clone()
    end = config.eos_token_id
    if isinstance(end, int):
        tokens[:, -1] = end
    return {"input_ids": tokens}


def _sound(model: nn.Module) -> Mapping[str, Tensor]:
    name = type(model).__name__
    if name.startswith("AST"):
        return {"input_values": torch.zeros(2, 64, 32)}
    if name.startswith("Whisper"):
        return {"input_features": torch.zeros(2, 8, 60)}
    return {"input_values": torch.zeros(2, 800)}


def _under_a_field(model: nn.Module) -> list[nn.Module]:
    for field in _FIELDS:
        part = getattr(model, field, None)
        layers = _layers(part) if isinstance(part, nn.Module) else []
        if layers:
            return layers[-1:]
    return []


def _hugging_face(model: nn.Module) -> list[nn.Module]:
    several = [getattr(model, name, None) for name in _SEVERAL_FIELDS]
    if all(isinstance(part, nn.Module) for part in several):
        return [layer for part in several if part is not None for layer in _layers(part)]
    return _under_a_field(model)


_SEVERAL_FIELDS = ("cls_classifier", "distillation_classifier")


def _classifier(model: nn.Module) -> list[nn.Module]:
    get_classifier: Any = getattr(model, "get_classifier", None)
    if get_classifier is None:  # An encoder without a head.
        return []
    declared: Any = get_classifier()
    parts = declared if isinstance(declared, tuple | list | nn.ModuleList) else [declared]
    more = [getattr(model, name) for name in [_MORE_HEADS.get(_name_of(model))] if name]
    return [layer for part in [*parts, *more] for layer in _last_of_mlp(part, _layers(part))]


def _last_of_mlp(part: nn.Module, layers: list[nn.Module]) -> list[nn.Module]:
    """Return the last layer of a head, which may have a hidden layer before it."""
    return layers[-1:] if type(part).__name__ == "MlpHead" else layers


def _name_of(model: nn.Module) -> str:
    card: Any = model.pretrained_cfg
    return str(card["architecture"])


def _layers(part: nn.Module) -> list[nn.Module]:
    return [module for module in part.modules() if isinstance(module, HEAD_LAYERS)]


_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
_STAGES = {
    "embedding_size": 8,
    "hidden_sizes": [8, 8],
    "depths": [1, 1],
    "num_stages": 2,
}
_SWIN = {
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
    "image_size": 32,
    "patch_size": 2,
}
_CONVNEXT = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
_TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 40,
}
_DECODER = {**_TEXT, "num_key_value_heads": 2, "pad_token_id": 0}
_SEQUENCES = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 40,
}

_IMAGE_CONFIGS: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": _VIT,
    "DeiTForImageClassification": _VIT,
    "DeiTForImageClassificationWithTeacher": _VIT,
    "BeitForImageClassification": _VIT,
    "Dinov2ForImageClassification": _VIT,
    "SwinForImageClassification": _SWIN,
    "Swinv2ForImageClassification": _SWIN,
    "ConvNextForImageClassification": _CONVNEXT,
    "ConvNextV2ForImageClassification": _CONVNEXT,
    "ResNetForImageClassification": _STAGES,
    "RegNetForImageClassification": {**_STAGES, "groups_width": 4},
    "MobileNetV1ForImageClassification": {},
    "MobileNetV2ForImageClassification": {},
    "SegformerForImageClassification": {},
}

_TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": _TEXT,
    "RobertaForSequenceClassification": _TEXT,
    "XLMRobertaForSequenceClassification": _TEXT,
    "DistilBertForSequenceClassification": {
        "vocab_size": 40,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 16,
    },
    "AlbertForSequenceClassification": {**_TEXT, "embedding_size": 8},
    "ElectraForSequenceClassification": _TEXT,
    "DebertaV2ForSequenceClassification": _TEXT,
    "ModernBertForSequenceClassification": {**_TEXT, "pad_token_id": 0, "eos_token_id": 2},
    "GPT2ForSequenceClassification": {
        "vocab_size": 40,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "pad_token_id": 0,
        "eos_token_id": 2,
    },
    "LlamaForSequenceClassification": _DECODER,
    "Qwen2ForSequenceClassification": _DECODER,
    "BartForSequenceClassification": _SEQUENCES,
    "XLNetForSequenceClassification": {
        "vocab_size": 40,
        "d_model": 16,
        "n_layer": 2,
        "n_head": 2,
        "d_inner": 16,
    },
}

_TOKEN_FAMILIES = (
    "Bert",
    "Roberta",
    "XLMRoberta",
    "DistilBert",
    "Albert",
    "Electra",
    "DebertaV2",
    "ModernBert",
    "GPT2",
    "Llama",
    "Qwen2",
    "XLNet",
)
_TEXT_CONFIGS |= {
    f"{family}ForTokenClassification": _TEXT_CONFIGS[f"{family}ForSequenceClassification"]
    for family in _TOKEN_FAMILIES
}

_WAVES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 33,
}

_AUDIO_CONFIGS: dict[str, dict[str, Any]] = {
    "Wav2Vec2ForSequenceClassification": _WAVES,
    "Wav2Vec2ForAudioFrameClassification": _WAVES,
    "Wav2Vec2ForCTC": _WAVES,
    "HubertForSequenceClassification": _WAVES,
    "HubertForCTC": _WAVES,
    "WavLMForSequenceClassification": _WAVES,
    "WavLMForCTC": _WAVES,
    "ASTForAudioClassification": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_length": 64,
        "num_mel_bins": 32,
    },
    "WhisperForAudioClassification": {
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "num_mel_bins": 8,
        "max_source_positions": 30,
        "vocab_size": 40,
        "pad_token_id": 0,
    },
}

#: Models that use the configuration class of another model.
_CONFIGS = {"DeiTForImageClassificationWithTeacher": "DeiT"}
