"""One file that holds a model and its weights, written and read in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from finetunelib import build_mlp, export_onnx
from finetunelib.errors import CorruptFileError, ExportMismatchError
from finetunelib.export import _verified_file
from finetunelib.export._one_file import ALIGNMENT, LARGE_WEIGHT
from finetunelib.export._read_back import read_back, with_weights_as_inputs
from finetunelib.export._verification.runtime import open_mapped, open_session
from support_models import samples
from support_process import kilobytes, reads_memory


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Return an MLP with two large weights, and one a few bytes too small to be one."""
    return build_mlp(131, [127, 129], 128, seed=0)


@pytest.fixture(scope="module")
def file(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the exported MLP."""
    path = tmp_path_factory.mktemp("one") / "model.onnx"
    export_onnx(model, path, samples(3, 131), verify=False)
    return path


def _places(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Return the offset and length of each external weight."""
    found = {}
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            found[tensor.name] = (int(entries["offset"]), int(entries["length"]))
    return found


def test_large_weights_are_aligned_and_all_are_those_of_the_model(
    model: nn.Module, file: Path
) -> None:
    """Other readers skip what fills the space between weights."""
    content = file.read_bytes()
    places = _places(read_back(file))
    whole = {tensor.name: tensor for tensor in onnx.load(file).graph.initializer}
    onnx.checker.check_model(str(file))
    large = {name for name, tensor in whole.items() if len(tensor.raw_data) >= LARGE_WEIGHT}
    assert set(places) == large
    assert len(large) == 2
    for name, (start, length) in places.items():
        assert start % ALIGNMENT == 0
        assert content[start : start + length] == whole[name].raw_data
    stored = {onnx.numpy_helper.to_array(tensor).tobytes() for tensor in whole.values()}
    assert {value.detach().numpy().tobytes() for value in model.parameters()} <= stored


def test_what_is_read_back_is_the_file_without_its_large_weights(file: Path) -> None:
    """The rest is the same as a reader of ONNX finds it."""
    found, whole = read_back(file), onnx.load(file)
    large = set(_places(found))
    small = {
        model: {t.name: t.raw_data for t in graph.initializer if t.name not in large}
        for model, graph in (("found", found.graph), ("whole", whole.graph))
    }
    assert small["found"] == small["whole"]
    for graph in (found.graph, whole.graph):
        del graph.initializer[:]
    whole.graph.DiscardUnknownFields()
    found.graph.DiscardUnknownFields()
    assert found == whole
    onnx.checker.check_model(with_weights_as_inputs(read_back(file)))


def test_files_of_others_are_read_with_their_weights(file: Path, tmp_path: Path) -> None:
    """Weights that are not aligned cannot be mapped, and are part of the model."""
    path = tmp_path / "saved.onnx"
    whole = onnx.load(file)
    whole.graph.DiscardUnknownFields()
    whole.producer_name += "x"
    for _ in range(2):  # At least one of two lengths leaves weights without alignment.
        onnx.save(whole, path)
        found = read_back(path)
        names = {tensor.name for tensor in found.graph.initializer}
        assert names == {tensor.name for tensor in whole.graph.initializer}
        if len(_places(found)) < len(_places(read_back(file))):
            break
        whole.producer_name += "x"
    else:
        pytest.fail("all weights were aligned by chance")
    assert all(place[0] % ALIGNMENT == 0 for place in _places(found).values())


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.3, 0.6, 0.9, 0.9999])
def test_a_file_that_ends_too_early_is_corrupt(file: Path, tmp_path: Path, share: float) -> None:
    """Wherever it ends."""
    path = tmp_path / "cut.onnx"
    content = file.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CorruptFileError, match=r"is not an ONNX model: .*Export it again"):
        read_back(path)


@pytest.mark.parametrize("content", [b"\x0b", b"\xff" * 20, b"\x3a\x03\x2a\x09\x00"])
def test_bytes_that_are_no_fields_are_corrupt(tmp_path: Path, content: bytes) -> None:
    """A group, a number that is too long, and a field longer than its graph."""
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match="is not an ONNX model"):
        read_back(path)


def test_mapped_weights_give_the_same_outputs(file: Path) -> None:
    """They are those in the file."""
    inputs = {"inputs": samples(5, 131).numpy()}
    expected = open_session(file).run(None, inputs)[0]
    mapped = open_mapped(file, read_back(file))
    assert np.allclose(mapped.run(None, inputs)[0], expected, atol=1e-5)
    # A bit of the first weight, where the file has it.
    start, _ = min(_places(read_back(file)).values())
    changed = bytearray(file.read_bytes())
    changed[start + 3] ^= 0x40
    other = file.with_name("changed.onnx")
    other.write_bytes(changed)
    assert not np.allclose(open_mapped(other, read_back(other)).run(None, inputs)[0], expected)


@reads_memory
def test_weights_are_not_copied_to_compare_a_file(tmp_path: Path) -> None:
    """A session of 60 MB of weights allocates a fraction of it."""
    path = tmp_path / "wide.onnx"
    export_onnx(build_mlp(4000, [3750], 2, seed=0), path, samples(2, 4000), verify=False)
    model = read_back(path)
    before = kilobytes("RssAnon")
    session = open_mapped(path, model)
    session.run(None, {"inputs": samples(3, 4000).numpy()})
    assert kilobytes("RssAnon") - before < 20_000


class _Steps(nn.Module):
    """Returns the states of an LSTM at all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        states: Tensor = self.lstm(inputs)[0]
        return states


@pytest.mark.slow
def test_a_file_that_is_written_again_is_compared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter declares the number of steps as fixed, which is corrected after a comparison."""
    torch.manual_seed(0)
    opened = _verified_file.open_shapes
    calls = []

    def spoiled(program: object, axes: list[tuple[int, int]]) -> None:
        opened(program, axes)
        calls.append(axes)
        for value in program.model.graph.initializers.values():  # type: ignore[attr-defined]
            array = value.const_value.numpy()
            if array.dtype == np.float32:
                value.const_value = type(value.const_value)(torch.from_numpy(array * 1.5))

    monkeypatch.setattr(_verified_file, "open_shapes", spoiled)
    with pytest.raises(ExportMismatchError):
        export_onnx(
            _Steps(),
            tmp_path / "steps.onnx",
            torch.randn(2, 5, 3),
            dynamic_shapes={"inputs": {1: "steps"}},
        )
    assert calls
    assert not (tmp_path / "steps.onnx").exists()
