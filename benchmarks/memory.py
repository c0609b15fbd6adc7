"""Compares the memory that `estimate_memory` expects with the measured peak, for five recipes.

    python benchmarks/memory.py [--width 768] [--tokens 64]

Each recipe is a process of its own, which trains a Llama-like model of 12 layers for two steps with
AdamW. The measured memory is the peak of the resident memory minus that before the model is built.
By then, the process has trained a very small model in the same way: the code that training needs is
in memory. Prints JSON.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _parts.process import IS_COUNTED, kilobytes
from finetunelib import Trainer
from finetunelib.finetuning import freeze, load_weights, save_weights
from finetunelib.training import TokenTask, estimate_memory

ROWS, STEPS, LAYERS, VOCABULARY = 2, 2, 12, 8000
SMALL_WIDTH = 32


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how memory is saved.

    Attributes:
        adapters: Whether LoRA adapters are trained in place of the model.
        frozen: Whether all blocks but the last one are frozen.
        checkpointing: Whether activations are computed again.
        bfloat16: Whether the base is built on the meta device and loaded in bfloat16.
    """

    adapters: bool = False
    frozen: bool = False
    checkpointing: bool = False
    bfloat16: bool = False


RECIPES: Mapping[str, Recipe] = {
    "full": Recipe(),
    "last block": Recipe(frozen=True),
    "LoRA": Recipe(adapters=True),
    "LoRA, checkpointed": Recipe(adapters=True, checkpointing=True),
    "LoRA, checkpointed, base in bfloat16": Recipe(
        adapters=True, checkpointing=True, bfloat16=True
    ),
}


def base_model(width: int) -> nn.Module:
    """Return a Llama-like model on the current device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        use_cache=False,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model


def loaded_in_bfloat16(width: int, folder: Path) -> nn.Module:
    """Return a model that was built without values and loaded from a file."""
    with torch.device("meta"):
        model: Any = base_model(width)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    load_weights(model, folder / f"{width}.safetensors", dtype=torch.bfloat16)
    return model  # type: ignore[no-any-return]


def model_of(recipe: Recipe, width: int, folder: Path) -> nn.Module:
    """Return the model of a recipe."""
    model = loaded_in_bfloat16(width, folder) if recipe.bfloat16 else base_model(width)
    if recipe.frozen:
        freeze(model, except_=[f"model.layers.{LAYERS - 1}"])
    if not recipe.adapters:
        return model
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in its old way.
        adapters = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
        return get_peft_model(model, adapters)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments that the Trainer and the estimate have in common."""
    return {
        "task": TokenTask(shift=True, chunk_size=128),
        "optimizer": torch.optim.AdamW,
        "precision": "bf16-mixed" if recipe.bfloat16 else "fp32",
        "gradient_checkpointing": recipe.checkpointing,
    }


def trained(recipe: Recipe, width: int, tokens: int, folder: Path) -> nn.Module:
    """Build a model, train it for a few steps, and return it."""
    torch.manual_seed(0)
    model = model_of(recipe, width, folder)
    data = torch.randint(0, VOCABULARY, (STEPS * ROWS, tokens))
    trainer = Trainer(model, batch_size=ROWS, progress=False, device="cpu", **settings_of(recipe))
    trainer.fit((data, data), max_steps=STEPS)
    return model


def peak() -> int:
    """Return the peak of the resident memory of this process in bytes."""
    if IS_COUNTED:  # `ru_maxrss` includes the process that started this one.
        return kilobytes("VmHWM") * 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def measure(name: str, width: int, tokens: int, folder: Path) -> dict[str, Any]:
    """Train in this process, estimate afterwards, and return both sizes."""
    recipe = RECIPES[name]
    trained(recipe, SMALL_WIDTH, tokens, folder)
    before, start = peak(), time.perf_counter()
    model = trained(recipe, width, tokens, folder)
    measured, seconds = peak() - before, time.perf_counter() - start
    batch = torch.zeros(ROWS, tokens, dtype=torch.int64)
    estimate = estimate_memory(model, (batch, batch), **settings_of(recipe))
    return {
        "recipe": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "estimated_mb": round(estimate.total / 1e6),
        "measured_mb": round(measured / 1e6),
        "estimated_to_measured": round(estimate.total / measured, 3),
        "seconds": round(seconds, 1),
    }


def write_bases(width: int, folder: Path) -> None:
    """Write the weights of the models that are built without values."""
    for size in (SMALL_WIDTH, width):
        save_weights(base_model(size), folder / f"{size}.safetensors")


def main() -> None:
    """Measure all recipes and print the rows."""
    parser = argparse.ArgumentParser(description="Compare estimated with measured memory.")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=64, help="tokens in each of two rows")
    parser.add_argument("--recipe", choices=RECIPES, help="measure this one in this process")
    parser.add_argument("--folder", type=Path, help="where the weights of the bases are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.recipe:
        print(json.dumps(measure(options.recipe, options.width, options.tokens, options.folder)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_bases(options.width, Path(folder))
        for name in RECIPES:
            command = [sys.executable, __file__, "--recipe", name, "--folder", folder]
            command += ["--width", str(options.width), "--tokens", str(options.tokens)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], file=sys.stderr)
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
        "tokens_in_a_batch": ROWS * options.tokens,
        "rows": rows,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
