"""Fine-tune a language model with adapters in little memory: stop, resume, merge and export.

    python examples/lora_llm.py --params 1e9 --dtype bfloat16
    python examples/lora_llm.py --params 4e8 --dtype float32 --tokens 8 --full

Needs `pip install "finetunelib[lora]" transformers`. The base is a Llama-like model with random
weights and the text is synthetic, so nothing is downloaded. The script

1. writes the weights of the base to shards, one tensor after the other;
2. builds the model on the meta device, and loads the shards in the dtype asked for;
3. trains LoRA adapters with gradient checkpointing and a cross-entropy in chunks, in a process that
   is killed, and in one that resumes and must end with the bits of a run that was not killed;
4. saves the adapters alone;
5. merges the adapters of a small model of the same kind into it, and exports it to ONNX.

With `--full`, all weights are trained, and steps 4 and 5 save the weights and merge nothing. It
prints one JSON object. The peaks are those of the processes that train.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib import Trainer, export_onnx
from finetunelib.finetuning import load_weights, save_weights
from finetunelib.training import Callback, TokenTask, TrainContext, estimate_memory

VOCABULARY = 32_000
STEPS = 4
SHARD_BYTES = 400_000_000
#: Without `fused`, an update takes two more tensors of the size of the largest parameter.
ADAMW = partial(torch.optim.AdamW, fused=True)


def config_of(parameters: float) -> Any:
    """Return the configuration of a Llama-like model of about this many parameters."""
    from transformers import LlamaConfig

    small = parameters < 5e7
    vocabulary = 256 if small else VOCABULARY
    width, layers = (64, 4) if small else (2048, 16)
    # A layer has 4 width^2 for attention (less for fewer keys) and 3 width x inner for the rest.
    attention = 2 * width**2 + 2 * width * width // 4
    left = (parameters - vocabulary * width) / layers - attention
    inner = max(64, int(left / (3 * width)) // 16 * 16)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=width // 64 if not small else 4,
        num_key_value_heads=width // 256 if not small else 1,
        tie_word_embeddings=True,
        use_cache=False,
    )


def empty_model(config: Any) -> nn.Module:
    """Return the model on the meta device, with the buffers that no file contains."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


def write_shards(config: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write random weights in shards. One shard at a time is in memory."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    shard: dict[str, Tensor] = {}
    where: dict[str, str] = {}

    def flush() -> None:
        name = f"model-{len(set(where.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, parameter in empty_model(config).named_parameters():  # Each tied one once.
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            flush()
        shape = tuple(parameter.shape)
        if len(shape) == 1:  # The scale of a norm.
            shard[name] = torch.ones(shape, dtype=dtype)
        else:
            shard[name] = torch.empty(shape, dtype=dtype).normal_(0, 0.02, generator=generator)
    flush()
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_adapters(model: nn.Module) -> nn.Module:
    """Add LoRA adapters in float32 to the attention of a model."""
    import warnings

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapters = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in its old way.
        return get_peft_model(model, adapters)


def text(vocabulary: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Return rows of tokens, of which each is the one before times three plus one, mostly."""
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(vocabulary, (STEPS * 2,), generator=generator)]
    for _ in range(tokens - 1):
        rows.append((rows[-1] * 3 + 1) % vocabulary)
    data = torch.stack(rows, 1)
    return data, data


def trainer_of(model: nn.Module, dtype: torch.dtype, *callbacks: Callback) -> Trainer:
    """Return the Trainer of all runs."""
    return Trainer(
        model,
        task=TokenTask(shift=True, chunk_size=128),
        optimizer=ADAMW,
        lr=1e-3,
        batch_size=2,
        precision="bf16-mixed" if dtype == torch.bfloat16 else "fp32",
        gradient_checkpointing=True,
        callbacks=callbacks,
        device="cpu",
    )


class Killed(Callback):
    """Kills the process after a step, as a machine that fails would."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._step = folder, step

    def on_step_end(self, context: TrainContext) -> None:
        """Write a checkpoint after each step, and end without a word after the chosen one."""
        if context.state.step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)
        context.request_checkpoint(self._folder / f"step-{context.state.step}")


def peak() -> int:
    """Return the peak of the resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` includes the process that started this one.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def digest_of(model: nn.Module) -> str:
    """Return the digest of the trainable parameters."""
    state = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state.update(name.encode())
            state.update(parameter.detach().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def train(options: argparse.Namespace) -> None:
    """Train in this process, and print the peak and the digest of what was trained as JSON."""
    config, dtype = config_of(options.params), getattr(torch, options.dtype)
    imported = peak()
    model = empty_model(config)
    load_weights(model, options.folder / "base", dtype=dtype)
    if not options.full:
        model = with_adapters(model)
    loaded = peak()
    checkpoints = options.folder / "checkpoints"
    killed = Killed(checkpoints, 3) if options.run == "killed" else None
    trainer = trainer_of(model, dtype, *([killed] if killed else []))
    resume = checkpoints if options.run == "resumed" else None
    start = time.perf_counter()
    history = trainer.fit(
        text(config.vocab_size, options.tokens), max_steps=STEPS, resume_from=resume
    )
    seconds = time.perf_counter() - start
    path = save_weights(
        model,
        options.folder / f"{options.run}.safetensors",
        trainable_only=not options.full,
    )
    result = {
        "imported_bytes": imported,
        "loaded_bytes": loaded,
        "peak_bytes": peak(),
        "seconds": round(seconds, 1),
        "steps": trainer.state.step,
        "train_loss": history["train_loss"][-1],
        "weights_bytes" if options.full else "adapter_bytes": path.stat().st_size,
        "sha256": digest_of(model),
    }
    print(json.dumps(result))


def estimate(options: argparse.Namespace) -> None:
    """Print what a step is expected to need, as JSON. Nothing is loaded for it."""
    config, dtype = config_of(options.params), getattr(torch, options.dtype)
    model = empty_model(config).to(dtype)
    if not options.full:
        model = with_adapters(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # As after loading: peft adds adapters in float32.
            parameter.data = parameter.data.float()
    tokens, labels = text(config.vocab_size, options.tokens)
    found = estimate_memory(
        model,
        (tokens[:2], labels[:2]),
        task=TokenTask(shift=True, chunk_size=128),
        optimizer=ADAMW,
        lr=1e-3,
        precision="bf16-mixed" if dtype == torch.bfloat16 else "fp32",
        gradient_checkpointing=True,
    )
    print(found, file=sys.stderr)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"estimated_bytes": found.total, "parameters": parameters}))


def merge_and_export(options: argparse.Namespace) -> None:
    """Merge trained adapters into a small model of the same kind, and export it verified."""
    config = config_of(1e6)
    write_shards(config, options.folder, torch.float32)
    model = empty_model(config)
    load_weights(model, options.folder)
    adapted = with_adapters(model)
    data = text(config.vocab_size, 16)
    trainer_of(adapted, torch.float32).fit(data, max_steps=STEPS)
    adapted.eval()
    with torch.no_grad():
        expected = adapted(data[0][:2]).logits
        merged = adapted.merge_and_unload()  # type: ignore[operator]
        difference = float((merged(data[0][:2]).logits - expected).abs().max())
    report = export_onnx(merged, options.folder / "merged.onnx", data[0][:2])
    checked = report.verification is not None and report.verification.status == "verified"
    result = {"merge_difference": difference, "export_verified": checked}
    print(json.dumps(result))


def run(options: argparse.Namespace, name: str, folder: Path) -> dict[str, Any] | None:
    """Run a part of the script in a process, and return what it printed, or `None` if killed."""
    command = [sys.executable, __file__, "--run", name, "--folder", str(folder)]
    for argument in ("params", "dtype", "tokens", "limit_gb"):
        command += [f"--{argument.replace('_', '-')}", str(getattr(options, argument))]
    if options.full:
        command.append("--full")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if name == "killed" and done.returncode == -signal.SIGKILL:
        return None
    if done.returncode:
        raise SystemExit(f"`{name}` ended with {done.returncode}.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def limit_memory(gigabytes: float) -> None:
    """Limit the memory that this process can allocate, if the system supports it.

    Files that libraries map into the address space do not count.
    """
    if gigabytes:
        size = int(gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def main() -> None:
    """Run all parts and print the result."""
    parser = argparse.ArgumentParser(description="Fine-tune a language model with adapters.")
    parser.add_argument("--params", type=float, default=1e6)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--tokens", type=int, default=128, help="tokens in each row")
    parser.add_argument("--limit-gb", type=float, default=8.0, help="0 for none")
    parser.add_argument("--full", action="store_true", help="train all weights")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--run", choices=("whole", "killed", "resumed", "estimate", "export"))
    options = parser.parse_args()
    limit_memory(options.limit_gb)
    parts = {"estimate": estimate, "export": merge_and_export}
    if options.run:
        parts.get(options.run, train)(options)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "base").mkdir()
        write_shards(config_of(options.params), folder / "base", getattr(torch, options.dtype))
        expected = run(options, "estimate", folder)
        whole = run(options, "whole", folder)
        killed = run(options, "killed", folder)
        resumed = run(options, "resumed", folder)
        exported = {} if options.full else run(options, "export", folder)
    if killed is not None or not (expected and whole and resumed) or exported is None:
        raise SystemExit("The second run was not killed.")
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "limit_gb": options.limit_gb,
        "tokens_in_a_batch": 2 * options.tokens,
        **expected,
        "writer_peak_bytes": peak(),
        **whole,
        "measured_bytes": whole["peak_bytes"] - whole["imported_bytes"],
        "resumed_peak_bytes": resumed["peak_bytes"],
        "resumed_has_the_same_bits": resumed["sha256"] == whole["sha256"],
        **exported,
    }
    print(json.dumps(result, indent=1))
    if not (result["resumed_has_the_same_bits"] and exported.get("export_verified", options.full)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
