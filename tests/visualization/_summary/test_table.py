"""`summary`: its rows, totals and notes, and that the model is unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from finetunelib import build_mlp
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.finetuning import freeze
from finetunelib.visualization import Summary, SummaryRow, summary
from support_models import Branching, Function, seeded
from support_untouched import changed_since, snapshot


def row(table: Summary, name: str) -> SummaryRow:
    """Return the row of a module."""
    return next(row for row in table.rows if row.name == name)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.relu(self.norm(self.linear(inputs)))


class Counting(nn.Module):
    """A module whose forward changes a buffer, a list, an attribute and the random state."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.count += 1
        self.seen.append(len(inputs))
        self.cache = torch.rand(3)
        outputs: Tensor = self.linear(inputs.mul_(2)) + self.cache
        return outputs


def deep(blocks: int = 4) -> nn.Sequential:
    """Return a model with equal blocks between two layers."""
    return nn.Sequential(
        nn.Linear(8, 4), nn.Sequential(*[Block(4) for _ in range(blocks)]), nn.Linear(4, 2)
    )


def test_row_contains_shape_sizes_and_dtype() -> None:
    """The row of a layer contains its output shape, sizes and dtype."""
    head = row(summary(build_mlp(6, [5], 3)), "head")
    assert (head.class_name, head.output_shapes, head.depth) == ("Linear", ((2, 3),), 1)
    assert (head.parameters, head.trainable_parameters, head.bytes) == (18, 18, 72)
    assert head.dtypes == (torch.float32,)


def test_totals_count_parameters_and_buffers() -> None:
    """The totals count parameters and buffers separately, and their memory together."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model[0].requires_grad_(False)
    table = summary(model)
    assert (table.parameters, table.trainable_parameters, table.frozen_parameters) == (21, 6, 15)
    assert table.buffers == 7
    assert table.bytes == 4 * (21 + 6) + 8


def test_tied_parameters_count_once() -> None:
    """A tensor shared by two layers is counted once, and a note names both."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    table = summary(model)
    assert table.parameters == 16 + 4 + 4
    assert any("`0.weight`, `1.weight`" in note for note in table.notes)


def test_repeated_blocks_share_one_row() -> None:
    """Neighbors of equal structure share a row, which contains the sums of their numbers."""
    table = summary(deep(4))
    folded = row(table, "1.0")
    assert (folded.last_name, folded.count, folded.parameters) == ("1.3", 4, 4 * 28)
    assert "1.1" not in {row.name for row in table.rows}
    assert row(table, "1.0.linear").parameters == 4 * 20


def test_leaves_of_the_table_add_up_to_the_total() -> None:
    """Each parameter is counted in exactly one of the deepest rows."""
    rows = summary(deep(3), depth=9).rows
    leaves = [
        row
        for row, after in zip(rows, [*rows[1:], None], strict=True)
        if after is None or after.depth <= row.depth
    ]
    assert sum(leaf.parameters for leaf in leaves) == rows[0].parameters


def test_block_of_different_shape_has_its_own_row() -> None:
    """Blocks of different shapes or classes do not share a row."""
    model = nn.Sequential(Block(4), Block(4), nn.Linear(4, 6), Block(6), Block(6))
    names = [(row.name, row.last_name) for row in summary(model, depth=1).rows[1:]]
    assert names == [("0", "1"), ("2", "2"), ("3", "4")]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda block: block.requires_grad_(False), id="not trainable"),
        pytest.param(lambda block: block.norm.eval(), id="different mode"),
        pytest.param(lambda block: block.half(), id="different dtype"),
    ],
)
def test_block_in_different_state_has_its_own_row(change: Callable[[Block], object]) -> None:
    """Blocks share a row only if the whole row applies to each of them."""
    blocks = [Block(4) for _ in range(3)]
    change(blocks[1])
    rows = summary(nn.Sequential(*blocks)).rows
    assert [row.name for row in rows if row.depth == 1] == ["0", "1", "2"]


def test_named_layers_have_their_own_rows() -> None:
    """Layers whose names are not just numbers, such as `norm1` and `norm2`, do not share a row."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    names = {row.name for row in summary(model, torch.zeros(2, 5, 8)).rows}
    assert {"norm1", "norm2"} <= names


@pytest.mark.parametrize(("depth", "deepest"), [(0, 0), (1, 1), (2, 2), (50, 3)])
def test_depth_limits_the_rows(depth: int, deepest: int) -> None:
    """The rows go down to `depth`, or to the depth of the model."""
    table = summary(deep(), depth=depth)
    assert max(row.depth for row in table.rows) == deepest
    assert table.depth == depth


def test_default_depth_fits_on_a_screen() -> None:
    """By default, the table of a model with many layers has at most 40 lines."""
    wide = nn.Sequential(
        *[nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 4)) for n in range(5, 25)]
    )
    table = summary(wide)
    assert table.depth == 1
    assert len(str(table).splitlines()) <= 40


def test_frozen_part_is_frozen_in_train_mode() -> None:
    """The mode shown is the effective one, although `train()` sets `.training` of frozen parts."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    freeze(model, except_=model[3])
    model.train()
    table = summary(model)
    assert [row.mode for row in table.rows] == ["mixed", "frozen", "frozen", "frozen", "train"]
    assert [row.trainable_parameters for row in table.rows] == [15, 0, 0, 0, 15]


def test_mode_is_that_before_the_call() -> None:
    """The eval mode of the forward pass is not shown, but that of a part set by the user is."""
    model = build_mlp(4, [3], 2)
    model.backbone.eval()
    table = summary(model)
    assert row(table, "").mode == "mixed"
    assert row(table, "backbone").mode == "eval"
    assert row(table, "head").mode == "train"


def test_module_called_twice_has_a_note() -> None:
    """The number of calls of a module is in its row and in a note."""
    relu = nn.ReLU()
    table = summary(nn.Sequential(nn.Linear(4, 3), relu, nn.Linear(3, 2), relu))
    assert row(table, "1").calls == 2
    assert row(table, "3").same_as == "1"
    assert "Used 2 times: `1`." in table.notes
    assert any("`3`, the same module as `1`" in note for note in table.notes)


def test_note_about_calls_omits_submodules() -> None:
    """A block that is called twice is named, but its submodules are not."""
    block = Block(4)
    table = summary(nn.Sequential(nn.Linear(3, 4), block, nn.ReLU(), block))
    assert row(table, "1.linear").calls == 2
    assert "Used 2 times: `1`." in table.notes


def test_row_may_refer_to_a_module_below_depth() -> None:
    """`same_as` may name a module that has no row."""
    relu = nn.ReLU()
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 3), relu), relu)
    table = summary(model, depth=1)
    assert row(table, "1").same_as == "0.1"
    assert not any(note.startswith("Used") for note in table.notes)


def test_module_that_was_not_called_is_not_used() -> None:
    """A module that the forward pass does not call has the status `not used`."""
    model = Function(lambda inputs: inputs * 2)
    model.spare = nn.Linear(4, 3)
    assert row(summary(model, torch.zeros(2, 4)), "spare").status == "not used"


def test_module_is_used_if_only_its_weight_is() -> None:
    """The output projection of an attention layer is not called, but its weight is used."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    table = summary(model, torch.zeros(2, 5, 8))
    assert row(table, "self_attn.out_proj").status == "used"
    assert row(table, "linear1").output_shapes == ((2, 5, 16),)


def test_all_tensors_of_an_output_are_found() -> None:
    """The output shapes are those of all tensors in tuples, mappings and nested outputs."""
    table = summary(nn.LSTM(4, 3, batch_first=True), torch.zeros(2, 5, 4))
    assert table.rows[0].output_shapes == ((2, 5, 3), (1, 2, 3), (1, 2, 3))
    both = Function(lambda inputs: {"logits": inputs, "loss": inputs.sum()})
    assert summary(both, torch.zeros(2, 4)).rows[0].output_shapes == ((2, 4), ())


def test_inputs_may_be_a_tuple_or_mapping() -> None:
    """A tuple is passed by position and a mapping by name."""
    inputs = torch.zeros(2, 3)
    model = nn.Bilinear(3, 3, 2)
    for example in ((inputs, inputs), {"input1": inputs, "input2": inputs}):
        assert summary(model, example).rows[0].output_shapes == ((2, 2),)


def test_failing_layer_is_marked() -> None:
    """A failing forward does not raise: earlier layers have shapes, and a note names the layer."""
    model = nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.Linear(5, 4)), nn.Linear(4, 2))
    table = summary(model, torch.zeros(3, 8), depth=1)
    statuses = {row.name: row.status for row in table.rows}
    assert statuses == {
        "": "unfinished",
        "0": "used",
        "1": "unfinished",
        "1.0": "failed",
        "2": "not reached",
    }
    assert row(table, "0").output_shapes == ((3, 4),)
    assert table.failed_at == "1.0"
    assert any("`1.0` (Linear): RuntimeError: mat1 and mat2" in note for note in table.notes)


def test_failure_in_the_models_own_forward() -> None:
    """An error outside of all layers is reported for the model itself."""

    def fail(inputs: Tensor) -> Tensor:
        raise KeyError("mask")

    table = summary(Function(fail), torch.zeros(2, 4))
    assert table.failed_at == ""
    assert any("the model's own forward: KeyError" in note for note in table.notes)


def test_caught_exception_is_not_a_failure() -> None:
    """A model may catch the exception of a layer and continue."""
    layer = nn.Linear(5, 4)

    def attempt(inputs: Tensor) -> Tensor:
        try:
            outputs: Tensor = layer(inputs)
        except RuntimeError:
            return inputs
        return outputs

    model = Function(attempt)
    model.layer = layer
    table = summary(model, torch.zeros(2, 4))
    assert table.failed_at is None
    assert [row.status for row in table.rows] == ["used", "not used"]


def test_failed_guess_has_advice() -> None:
    """If the guessed input may have caused the failure, a note suggests `example_input`."""
    model = nn.Sequential(nn.Linear(4, 3), Function(lambda inputs: inputs.view(7, 7)))
    table = summary(model)
    assert table.failed_at == "1"
    assert any("`example_input=`" in note for note in table.notes)


def test_model_that_cannot_be_guessed_has_no_shapes() -> None:
    """Sizes and modes are shown without a forward pass."""
    table = summary(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()))
    assert {row.status for row in table.rows} == {"not run"}
    assert table.parameters == 6
    assert any("`example_input=`" in note for note in table.notes)


@pytest.mark.parametrize("example", [None, torch.ones(2, 4)], ids=["guess", "example"])
def test_model_is_unchanged(example: Tensor | None) -> None:
    """Parameters, buffers, modes, hooks, gradients, attributes and random states do not change."""
    counting = seeded(Counting)
    model = nn.Sequential(counting, seeded(Branching().layers[1:].train), nn.Linear(3, 2))
    model[1].eval()
    model(torch.ones(5, 4)).sum().backward()
    before, attributes = snapshot(model), dict(vars(counting))
    summary(model, example)
    assert changed_since(before, model) == []
    assert vars(counting) == attributes
    assert attributes["seen"] == [5]
    assert example is None or example.eq(1).all()


def test_model_is_unchanged_if_forward_fails() -> None:
    """The model does not change after an error either."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(5, 2))
    before = snapshot(model)
    assert summary(model, torch.ones(2, 4)).failed_at == "2"
    assert changed_since(before, model) == []


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_set_by_a_hook_is_unchanged() -> None:
    """weight_norm and spectral_norm replace a weight in each forward; the original is restored."""
    for normed in (nn.utils.weight_norm(nn.Linear(4, 3)), nn.utils.spectral_norm(nn.Linear(4, 3))):
        weight, before = normed.weight, snapshot(normed)
        assert summary(normed).failed_at is None
        assert normed.weight is weight
        assert changed_since(before, normed) == []


def test_parametrization_has_a_row() -> None:
    """The module that computes a weight is part of the table."""
    table = summary(parametrizations.weight_norm(nn.Linear(4, 3)))
    assert row(table, "parametrizations.weight").status == "used"
    assert table.parameters == 12 + 3 + 3


@pytest.mark.slow
def test_meta_model_has_shapes() -> None:
    """A model on the meta device has output shapes, even if the example is on the CPU."""
    with torch.device("meta"):
        model = build_mlp(6, [5], 3)
    for example in (None, torch.zeros(2, 6)):
        assert row(summary(model, example), "head").output_shapes == ((2, 3),)


def test_lazy_model_is_not_run() -> None:
    """A forward pass would initialize a lazy layer."""
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU())
    table = summary(model, torch.zeros(2, 4))
    assert any("lazy" in note for note in table.notes)
    assert isinstance(model[0].weight, nn.UninitializedParameter)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_has_no_shapes() -> None:
    """TorchScript is not run, but the original class names are shown."""
    table = summary(torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.ReLU())))
    assert [row.class_name for row in table.rows] == ["Sequential", "Linear", "ReLU"]
    assert table.rows[0].status == "not run"
    assert any("TorchScript" in note for note in table.notes)


@pytest.mark.filterwarnings("ignore:.*quantiz:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
def test_packed_weights_have_a_note() -> None:
    """A note says that the weights of quantized layers are not counted."""
    quantize: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
    model = quantize(build_mlp(6, [5], 3), {nn.Linear})
    table = summary(model, torch.zeros(2, 6))
    assert row(table, "head").output_shapes == ((2, 3),)
    assert any("`backbone.1`, `head`" in note for note in table.notes)


@pytest.mark.slow
def test_compiled_model_has_original_names() -> None:
    """Names and classes are those without `torch.compile`, even if a submodule is compiled."""
    inner = build_mlp(6, [5], 3)
    compiled: Any = torch.compile(inner)  # torch types it as a function
    assert summary(compiled) == summary(inner)
    assert "0.head" in {row.name for row in summary(nn.Sequential(compiled)).rows}
    assert summary(nn.Sequential(compiled), torch.zeros(2, 7)).failed_at == "0"


def test_data_parallel_model_has_original_names() -> None:
    """The `DataParallel` wrapper is not shown."""
    inner = build_mlp(6, [5], 3)
    assert summary(nn.DataParallel(inner)) == summary(inner)


@pytest.mark.parametrize(
    ("model", "named"), [("resnet18", "str"), (nn.Linear, "Linear"), (None, "NoneType")]
)
def test_model_must_be_a_module(model: object, named: str) -> None:
    """The message contains the type of a string, a class or `None`."""
    with pytest.raises(InvalidTypeError, match=named):
        summary(model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("depth", ["2", 1.5, True])
def test_depth_must_be_a_whole_number(depth: object) -> None:
    """The message contains the type of `depth`."""
    with pytest.raises(InvalidTypeError, match=type(depth).__name__):
        summary(nn.Linear(2, 2), depth=depth)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_depth_must_not_be_negative() -> None:
    """The message contains the negative value."""
    with pytest.raises(InvalidArgumentError, match="-1"):
        summary(nn.Linear(2, 2), depth=-1)


def test_repr_is_one_short_line() -> None:
    """The repr of a table and of its rows names what they describe, without all of the values."""
    table = summary(deep(4))
    for text in [repr(table), *map(repr, table.rows)]:
        assert "\n" not in text
        assert len(text) < 200
    assert "7 rows, 158 parameters" in repr(table)
    assert "1.0 to 1.3" in repr(row(table, "1.0"))


def test_example_must_contain_tensors() -> None:
    """The message contains the type of the example."""
    with pytest.raises(InvalidTypeError, match="str"):
        summary(nn.Linear(2, 2), "batch")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
