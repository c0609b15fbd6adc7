"""`summary`: what it measures, and that it leaves everything as it was."""

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
    """A module that keeps things in its forward: a buffer, a list, a tensor, and a random draw."""

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
    """Return a model of equal blocks between two layers."""
    return nn.Sequential(
        nn.Linear(8, 4), nn.Sequential(*[Block(4) for _ in range(blocks)]), nn.Linear(4, 2)
    )


def test_row_holds_shape_sizes_and_dtype() -> None:
    """A layer's row tells what it returns, how large it is, and of which type."""
    head = row(summary(build_mlp(6, [5], 3)), "head")
    assert (head.class_name, head.output_shapes, head.depth) == ("Linear", ((2, 3),), 1)
    assert (head.parameters, head.trainable_parameters, head.bytes) == (18, 18, 72)
    assert head.dtypes == (torch.float32,)


def test_totals_count_parameters_and_buffers() -> None:
    """The totals are those of the whole model, buffers apart."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model[0].requires_grad_(False)
    table = summary(model)
    assert (table.parameters, table.trainable_parameters, table.frozen_parameters) == (21, 6, 15)
    assert table.buffers == 7
    assert table.bytes == 4 * (21 + 6) + 8


def test_tied_parameters_count_once() -> None:
    """A tensor that two layers share is counted once in the totals, and the tie is named."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    table = summary(model)
    assert table.parameters == 16 + 4 + 4
    assert any("`0.weight`, `1.weight`" in note for note in table.notes)


def test_repeated_blocks_stand_in_one_row() -> None:
    """Neighbours of equal structure are one row, with their numbers added up."""
    table = summary(deep(4))
    folded = row(table, "1.0")
    assert (folded.last_name, folded.count, folded.parameters) == ("1.3", 4, 4 * 28)
    assert "1.1" not in {row.name for row in table.rows}
    assert row(table, "1.0.linear").parameters == 4 * 20


def test_leaves_of_the_table_add_up_to_the_total() -> None:
    """No parameter falls between the rows or into two of them."""
    rows = summary(deep(3), depth=9).rows
    leaves = [
        row
        for row, after in zip(rows, [*rows[1:], None], strict=True)
        if after is None or after.depth <= row.depth
    ]
    assert sum(leaf.parameters for leaf in leaves) == rows[0].parameters


def test_block_of_another_shape_is_not_folded() -> None:
    """A block that differs from its neighbours has a row of its own."""
    model = nn.Sequential(Block(4), Block(4), nn.Linear(4, 6), Block(6), Block(6))
    names = [(row.name, row.last_name) for row in summary(model, depth=1).rows[1:]]
    assert names == [("0", "1"), ("2", "2"), ("3", "4")]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda block: block.requires_grad_(False), id="not trainable"),
        pytest.param(lambda block: block.norm.eval(), id="another mode"),
        pytest.param(lambda block: block.half(), id="another type"),
    ],
)
def test_block_in_another_state_is_not_folded(change: Callable[[Block], object]) -> None:
    """What a row says holds for each of the blocks that it stands for."""
    blocks = [Block(4) for _ in range(3)]
    change(blocks[1])
    rows = summary(nn.Sequential(*blocks)).rows
    assert [row.name for row in rows if row.depth == 1] == ["0", "1", "2"]


def test_named_layers_are_not_folded() -> None:
    """Layers under names of their own have rows of their own, such as queries and keys."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    names = {row.name for row in summary(model, torch.zeros(2, 5, 8)).rows}
    assert {"norm1", "norm2"} <= names


@pytest.mark.parametrize(("depth", "deepest"), [(0, 0), (1, 1), (2, 2), (50, 3)])
def test_depth_limits_the_rows(depth: int, deepest: int) -> None:
    """The rows go as far down as was asked for, or as the model is deep."""
    table = summary(deep(), depth=depth)
    assert max(row.depth for row in table.rows) == deepest
    assert table.depth == depth


def test_default_depth_fits_on_a_screen() -> None:
    """A model with hundreds of layers takes about forty lines."""
    wide = nn.Sequential(
        *[nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 4)) for n in range(5, 25)]
    )
    table = summary(wide)
    assert table.depth == 1
    assert len(str(table).splitlines()) <= 40


def test_frozen_part_reads_frozen_in_train_mode() -> None:
    """The mode is the effective one: `train()` sets the flags of what freezing holds in eval."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    freeze(model, except_=model[3])
    model.train()
    table = summary(model)
    assert [row.mode for row in table.rows] == ["mixed", "frozen", "frozen", "frozen", "train"]
    assert [row.trainable_parameters for row in table.rows] == [15, 0, 0, 0, 15]


def test_modes_of_the_user_are_shown() -> None:
    """A part that the user put into eval mode reads eval; the run's own mode does not show."""
    model = build_mlp(4, [3], 2)
    model.backbone.eval()
    table = summary(model)
    assert row(table, "").mode == "mixed"
    assert row(table, "backbone").mode == "eval"
    assert row(table, "head").mode == "train"


def test_module_used_twice_says_so() -> None:
    """How often the forward pass called a module is in its row and in a note."""
    relu = nn.ReLU()
    table = summary(nn.Sequential(nn.Linear(4, 3), relu, nn.Linear(3, 2), relu))
    assert row(table, "1").calls == 2
    assert row(table, "3").same_as == "1"
    assert "Used 2 times: `1`." in table.notes
    assert any("`3`, the same module as `1`" in note for note in table.notes)


def test_inside_of_a_repeated_module_goes_without_saying() -> None:
    """A block that is used twice is named once, and not with all that is inside of it."""
    block = Block(4)
    table = summary(nn.Sequential(nn.Linear(3, 4), block, nn.ReLU(), block))
    assert row(table, "1.linear").calls == 2
    assert "Used 2 times: `1`." in table.notes


def test_module_that_stands_deeper_elsewhere_is_named() -> None:
    """A row may refer to a module that is below the depth that was asked for."""
    relu = nn.ReLU()
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 3), relu), relu)
    table = summary(model, depth=1)
    assert row(table, "1").same_as == "0.1"
    assert not any(note.startswith("Used") for note in table.notes)


def test_module_that_was_not_called_is_not_used() -> None:
    """A module that the forward pass leaves out is marked."""
    model = Function(lambda inputs: inputs * 2)
    model.spare = nn.Linear(4, 3)
    assert row(summary(model, torch.zeros(2, 4)), "spare").status == "not used"


def test_module_whose_weight_alone_is_used_is_used() -> None:
    """The projection of an attention layer is never called, but its weight is taken."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    table = summary(model, torch.zeros(2, 5, 8))
    assert row(table, "self_attn.out_proj").status == "used"
    assert row(table, "linear1").output_shapes == ((2, 5, 16),)


def test_every_tensor_of_an_output_is_found() -> None:
    """Tuples, mappings and nested outputs show the shapes of all their tensors."""
    table = summary(nn.LSTM(4, 3, batch_first=True), torch.zeros(2, 5, 4))
    assert table.rows[0].output_shapes == ((2, 5, 3), (1, 2, 3), (1, 2, 3))
    both = Function(lambda inputs: {"logits": inputs, "loss": inputs.sum()})
    assert summary(both, torch.zeros(2, 4)).rows[0].output_shapes == ((2, 4), ())


def test_inputs_by_position_and_by_name() -> None:
    """A tuple is passed by position and a mapping by name."""
    inputs = torch.zeros(2, 3)
    model = nn.Bilinear(3, 3, 2)
    for example in ((inputs, inputs), {"input1": inputs, "input2": inputs}):
        assert summary(model, example).rows[0].output_shapes == ((2, 2),)


def test_failing_layer_is_marked_and_what_came_before_is_shown() -> None:
    """A forward that fails raises nothing: the table goes up to the failing layer and names it."""
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
    """An error outside of every layer is told as the model's own."""

    def fail(inputs: Tensor) -> Tensor:
        raise KeyError("mask")

    table = summary(Function(fail), torch.zeros(2, 4))
    assert table.failed_at == ""
    assert any("the model's own forward: KeyError" in note for note in table.notes)


def test_failed_attempt_that_the_model_caught_is_no_failure() -> None:
    """A model may try a layer and go on without it."""
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


def test_no_guess_that_fits_says_what_to_pass() -> None:
    """Where a guess fails, the failure may be the guess's, which is said."""
    model = nn.Sequential(nn.Linear(4, 3), Function(lambda inputs: inputs.view(7, 7)))
    table = summary(model)
    assert table.failed_at == "1"
    assert any("`example_input=`" in note for note in table.notes)


def test_model_without_a_guess_is_shown_without_shapes() -> None:
    """Sizes and modes need no run."""
    table = summary(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()))
    assert {row.status for row in table.rows} == {"not run"}
    assert table.parameters == 6
    assert any("`example_input=`" in note for note in table.notes)


@pytest.mark.parametrize("example", [None, torch.ones(2, 4)], ids=["guess", "example"])
def test_nothing_changes(example: Tensor | None) -> None:
    """Parameters, buffers, modes, hooks, gradients, attributes and random states stay."""
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


def test_nothing_changes_when_the_forward_fails() -> None:
    """The model is as before on the way of an error too."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(5, 2))
    before = snapshot(model)
    assert summary(model, torch.ones(2, 4)).failed_at == "2"
    assert changed_since(before, model) == []


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_that_a_hook_sets_stays() -> None:
    """Old weight_norm and spectral_norm set a weight in each forward; the user's stays there."""
    for normed in (nn.utils.weight_norm(nn.Linear(4, 3)), nn.utils.spectral_norm(nn.Linear(4, 3))):
        weight, before = normed.weight, snapshot(normed)
        assert summary(normed).failed_at is None
        assert normed.weight is weight
        assert changed_since(before, normed) == []


def test_parametrized_layer_is_run() -> None:
    """The module that makes a weight is part of the table."""
    table = summary(parametrizations.weight_norm(nn.Linear(4, 3)))
    assert row(table, "parametrizations.weight").status == "used"
    assert table.parameters == 12 + 3 + 3


@pytest.mark.slow
def test_meta_model_is_measured_without_data() -> None:
    """A model without data has shapes and sizes, for inputs with data too."""
    with torch.device("meta"):
        model = build_mlp(6, [5], 3)
    for example in (None, torch.zeros(2, 6)):
        assert row(summary(model, example), "head").output_shapes == ((2, 3),)


def test_lazy_model_stays_lazy() -> None:
    """A lazy layer would get its weights from a run, so there is none."""
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU())
    table = summary(model, torch.zeros(2, 4))
    assert any("lazy" in note for note in table.notes)
    assert isinstance(model[0].weight, nn.UninitializedParameter)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_shown_without_shapes() -> None:
    """TorchScript runs its parts itself; the classes are the user's own."""
    table = summary(torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.ReLU())))
    assert [row.class_name for row in table.rows] == ["Sequential", "Linear", "ReLU"]
    assert table.rows[0].status == "not run"
    assert any("TorchScript" in note for note in table.notes)


@pytest.mark.filterwarnings("ignore:.*quantiz:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
def test_packed_weights_are_told() -> None:
    """The weights of a quantized layer are no parameters, and a note says that."""
    quantize: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
    model = quantize(build_mlp(6, [5], 3), {nn.Linear})
    table = summary(model, torch.zeros(2, 6))
    assert row(table, "head").output_shapes == ((2, 3),)
    assert any("`backbone.1`, `head`" in note for note in table.notes)


@pytest.mark.slow
def test_compiled_model_reads_as_the_users_own() -> None:
    """Names and classes are those of the model that was compiled, as is one compiled inside."""
    inner = build_mlp(6, [5], 3)
    compiled: Any = torch.compile(inner)  # torch says that it is a function
    assert summary(compiled) == summary(inner)
    assert "0.head" in {row.name for row in summary(nn.Sequential(compiled)).rows}
    assert summary(nn.Sequential(compiled), torch.zeros(2, 7)).failed_at == "0"


def test_data_parallel_model_reads_as_the_users_own() -> None:
    """A wrapper for several devices is left out."""
    inner = build_mlp(6, [5], 3)
    assert summary(nn.DataParallel(inner)) == summary(inner)


@pytest.mark.parametrize(
    ("model", "told"), [("resnet18", "str"), (nn.Linear, "Linear"), (None, "NoneType")]
)
def test_model_must_be_a_module(model: object, told: str) -> None:
    """A name, a class or nothing is refused by its type."""
    with pytest.raises(InvalidTypeError, match=told):
        summary(model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("depth", ["2", 1.5, True])
def test_depth_must_be_a_whole_number(depth: object) -> None:
    """A depth of another type is refused by that type."""
    with pytest.raises(InvalidTypeError, match=type(depth).__name__):
        summary(nn.Linear(2, 2), depth=depth)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_depth_must_not_be_negative() -> None:
    """A negative depth is refused with its value."""
    with pytest.raises(InvalidArgumentError, match="-1"):
        summary(nn.Linear(2, 2), depth=-1)


def test_example_must_hold_tensors() -> None:
    """An example of another type is refused by that type."""
    with pytest.raises(InvalidTypeError, match="str"):
        summary(nn.Linear(2, 2), "batch")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
