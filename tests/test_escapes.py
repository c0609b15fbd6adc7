"""Control characters in names from files are escaped in messages, tables and pages."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from finetunelib._escapes import escaped, one_line
from finetunelib.errors import CorruptFileError, FileMissingError, FinetuneLibError
from finetunelib.finetuning import load_weights
from finetunelib.visualization import summary
from training._checkpointing.checkpoint_files import DATA, forge, trainer

#: A name that would clear a terminal, reverse the direction of text, and cannot be encoded.
NAME = "a\x1b[2J\u202eb\ud800"
ESCAPED = "a\\x1b[2J\\u202eb\\ud800"


@pytest.mark.parametrize("text", ["plain", "猫 é 😀", "two\nlines\tand a tab"])
def test_printable_text_is_unchanged(text: str) -> None:
    """Letters of all alphabets, emoji, line breaks and tabs are kept."""
    assert escaped(text) == text


def test_control_characters_are_escaped() -> None:
    """Control characters, direction marks and surrogates become their Python escapes."""
    assert escaped(NAME) == ESCAPED
    assert one_line(f"{NAME}\n") == f"{ESCAPED}\\n"


def test_very_long_name_is_cut() -> None:
    """A name in a message has at most 200 characters."""
    assert len(one_line("a" * 10_000)) == 200


def test_messages_of_errors_are_escaped() -> None:
    """The message of every error of the library is escaped, but its arguments are not."""
    error = FileMissingError(f"`{NAME}` is missing.")
    assert str(error) == f"`{ESCAPED}` is missing."
    assert error.args == (f"`{NAME}` is missing.",)
    str(FinetuneLibError(NAME)).encode()


def test_name_of_a_tensor_is_escaped(tmp_path: Path) -> None:
    """The name of a tensor in a file cannot change the terminal that shows the message."""
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a\x1b[2J": fields}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(FinetuneLibError) as caught:
        load_weights(nn.Linear(2, 2), path)
    assert "\x1b" not in str(caught.value)
    assert "a\\x1b[2J" in str(caught.value)


def test_surrogate_in_an_index_is_escaped(tmp_path: Path) -> None:
    """A message about a name that is not valid Unicode can be printed."""
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"\\ud800": "../\\ud800.safetensors"}}')
    with pytest.raises(CorruptFileError) as caught:
        load_weights(nn.Linear(2, 2), index)
    str(caught.value).encode()


def test_names_of_modules_are_escaped_in_a_summary() -> None:
    """The text and the HTML of a summary contain no control characters of names and classes."""
    named = type(NAME[:-1], (nn.Linear,), {})
    model = nn.Sequential()
    model.add_module(NAME.replace(".", ""), named(4, 3))
    model.add_module("spare", nn.Linear(1, 1))
    table = summary(model, torch.zeros(2, 4))
    for text in (str(table), table._repr_html_(), repr(table), repr(table.rows[1])):
        assert "\x1b" not in text
        assert "\u202e" not in text
        text.encode()
    assert "a\\x1b[2J" in str(table)


def test_names_in_a_load_report_are_escaped(tmp_path: Path) -> None:
    """The names of tensors and of the file are escaped in the text of a report."""
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a\x1b[2J": fields}).encode()
    path = tmp_path / "a\x1b[2J.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    report = load_weights(nn.Linear(2, 2), path, minimum_match=0.0)
    assert report.unexpected == ("a\x1b[2J",)
    for text in (str(report), repr(report)):
        assert "\x1b" not in text


def test_warning_about_a_checkpoint_is_escaped(tmp_path: Path) -> None:
    """What a manifest says about the environment cannot change the terminal."""
    trained = trainer()
    trained.fit(DATA, epochs=1)
    path = trained.save_checkpoint(tmp_path / "one")
    forge(path, torch="2\x1b[2J")
    with pytest.warns(UserWarning, match="different environment") as caught:
        trainer().load_checkpoint(path)
    assert "\x1b" not in str(caught[0].message)
