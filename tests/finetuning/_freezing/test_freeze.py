"""Freezing and unfreezing parts of a model, in an ordinary loop."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import spectral_norm

from finetunelib import freeze_and_replace_head
from finetunelib.errors import FreezeError, InvalidArgumentError, InvalidTypeError
from finetunelib.finetuning import fingerprint, freeze, is_frozen, save_weights, unfreeze
from finetunelib.finetuning._freezing.hold import held_in_eval_mode

INPUTS = torch.rand(8, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
TARGETS = torch.arange(8) % 3


class Block(nn.Module):
    """A layer with BatchNorm, an old spectral norm, and dropout in its own forward."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layer = nn.Linear(inputs, outputs)
        self.layer: nn.Module = spectral_norm(layer)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.norm(self.layer(inputs)).relu()
        return functional.dropout(features, 0.5, training=self.training)


class Net(nn.Module):
    """Three blocks and a head; the root has its own dropout and parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.first = Block(4, 16)
        self.second = Block(16, 16)
        self.third = Block(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.third(self.second(self.first(inputs + self.shift)))
        outputs: Tensor = self.head(functional.dropout(features, 0.5, training=self.training))
        return outputs


class Tied(nn.Module):
    """A model whose first and last layers share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.body = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4, bias=False)
        self.decode.weight = self.embed.weight


def net() -> Net:
    """Return a model whose statistics are not the initial ones."""
    model = Net()
    model(INPUTS * 2)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """Return the names whose values are not bit for bit the same."""
    after = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def moved_parts(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """Return the first parts of the names whose values moved."""
    return {name.partition(".")[0] for name in moved(before, model)}


def train(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, steps: int = 3) -> None:
    """Train all parameters, as an ordinary loop does."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(INPUTS), TARGETS))
        optimizer.step()


def trainable(model: nn.Module) -> set[str]:
    """Return the first parts of the names of trainable parameters."""
    return {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}


def held(model: nn.Module) -> set[str]:
    """Return the names of the modules that are held in eval mode."""
    return {name for name, module in model.named_modules() if held_in_eval_mode(module)}


def through_pickle(model: nn.Module) -> nn.Module:
    """Return a copy of a model through a pickle."""
    copied = pickle.loads(pickle.dumps(model))
    assert isinstance(copied, nn.Module)
    return copied


# Freezing


def test_freezing_everything_leaves_nothing_trainable() -> None:
    """Without parts the whole model is frozen."""
    model = net()
    freeze(model)
    assert trainable(model) == set()
    assert is_frozen(model)


def test_frozen_part_stays_bit_for_bit_and_the_rest_learns() -> None:
    """Fifty AdamW steps with weight decay change no bit of the frozen part, buffers included."""
    model = net()
    freeze(model, ["first", "second"])
    before = state(model)
    train(model, steps=50)
    assert moved_parts(before, model) == {"shift", "third", "head"}


def test_freezing_after_a_backward_pass_stops_pending_updates() -> None:
    """Earlier gradients and momentum do not change a part that was frozen afterwards."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    train(model, optimizer)
    functional.cross_entropy(model(INPUTS), TARGETS).backward()  # type: ignore[no-untyped-call]
    freeze(model, "first")
    before = state(model)
    optimizer.step()
    assert "first" not in moved_parts(before, model)
    assert {name for name, p in model.first.named_parameters() if p.grad is not None} == set()


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle], ids=["deep", "pickle"])
def test_copy_is_frozen_in_the_same_parts(copied: Callable[[nn.Module], nn.Module]) -> None:
    """Only the head of a copy is trained."""
    model = net()
    freeze(model, except_="head")
    twin = copied(model)
    before = state(twin)
    train(twin)
    assert moved_parts(before, twin) == {"head"}


def test_freezing_again_changes_nothing() -> None:
    """A second call returns the same digests, and one `unfreeze` undoes both."""
    model = net()
    first = freeze(model, "first")
    assert freeze(model, "first") == first
    unfreeze(model, "first")
    assert held(model) == set()


def test_excepted_part_is_trainable() -> None:
    """Everything except the named parts is frozen."""
    model = net()
    freeze(model, except_=["head", model.third])
    assert trainable(model) == {"head", "third"}
    assert not is_frozen(model, "third")


def test_excepted_part_is_trainable_although_it_was_frozen_before() -> None:
    """A part that is excepted later is trained again."""
    model = freeze_and_replace_head(net(), num_classes=3, at="head")
    freeze(model, except_=["third", "head"])
    before = state(model)
    train(model)
    assert moved_parts(before, model) == {"third", "head"}


def test_exception_within_a_part() -> None:
    """A part is frozen except for some of it, and the rest of the model is unchanged."""
    model = net()
    freeze(model, "first", except_="first.norm")
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        "first.layer.weight_orig",
        "first.layer.bias",
    }


def test_excepting_everything_is_an_error() -> None:
    """A call that would freeze nothing is refused."""
    with pytest.raises(InvalidArgumentError, match="except_"):
        freeze(net(), "first", except_="first")


def test_only_the_named_part_is_held() -> None:
    """The root around a named part is not held."""
    model = net()
    freeze(model, "second")
    assert held(model) == {"second", "second.layer", "second.norm"}


def test_module_around_an_excepted_part_of_a_named_part_is_held() -> None:
    """The named part's own forward is frozen too, and the root's is not."""
    model = net()
    freeze(model, "second", except_="second.norm")
    assert held(model) == {"second", "second.layer"}


def test_modules_around_an_excepted_part_are_held() -> None:
    """The root's own dropout is off if the model as a whole is named."""
    model = net()
    freeze(model, except_="third")
    assert held(model) >= {"", "first", "second", "head"}
    assert "third" not in held(model)


def test_frozen_features_depend_on_the_sample_alone() -> None:
    """In train mode a sample's features do not depend on the rest of the batch, up to rounding."""
    model = net()
    freeze(model, except_="head")
    model.train()
    features: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda _, args: features.append(args[0][0]))
    model(INPUTS)
    model.train()
    model(torch.stack([INPUTS[0], *INPUTS[4:] * 5]))
    # Sums over another batch may be computed in another order.
    torch.testing.assert_close(features[0], features[1], rtol=1e-6, atol=1e-6)


def test_single_parameter_only_loses_its_gradient() -> None:
    """Naming a parameter by itself does not change the mode of its module."""
    model = net()
    freeze(model, "*.bias")
    assert held(model) == set()
    assert not model.head.bias.requires_grad
    assert model.head.weight.requires_grad


def test_freezing_returns_the_fingerprint() -> None:
    """`freeze` returns what `fingerprint` returns afterwards."""
    model = net()
    assert freeze(model, "first") == fingerprint(model)


@pytest.mark.slow
def test_compiled_model_is_frozen_by_the_users_names() -> None:
    """A compiled model that has run before can be frozen by the names inside it."""
    model = net()
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    compiled.train()
    compiled(INPUTS)
    freeze(compiled, except_="head")
    before = state(model)
    compiled.train()
    outputs = compiled(INPUTS)
    assert torch.equal(outputs, compiled(INPUTS))
    assert moved(before, model) == set()


def test_model_on_the_meta_device_can_be_frozen() -> None:
    """A model on the meta device is frozen and has no digests."""
    with torch.device("meta"):
        model = Net()
    assert freeze(model) == {}
    assert is_frozen(model)


# Depth


@pytest.mark.parametrize(
    ("depth", "free"),
    [(0, {"head"}), (1, {"head", "third"}), (2, {"head", "third", "second"})],
)
def test_depth_counts_from_the_head(depth: int, free: set[str]) -> None:
    """The head and that number of blocks before it stay trainable."""
    model = net()
    freeze(model, except_last=depth)
    assert trainable(model) == free


def test_unfreezing_to_a_depth() -> None:
    """The last blocks are trained again, including their statistics."""
    model = net()
    freeze(model)
    unfreeze(model, last=1)
    before = state(model)
    train(model)
    moving = moved(before, model)
    assert {name.partition(".")[0] for name in moving} == {"third", "head"}
    assert "third.norm.running_mean" in moving


def test_depth_together_with_parts_is_an_error() -> None:
    """Depth counts over the whole model, so it excludes `parts`."""
    with pytest.raises(InvalidArgumentError, match="except_last"):
        freeze(net(), "first", except_last=1)
    with pytest.raises(InvalidArgumentError, match="last"):
        unfreeze(net(), "first", last=1)


# Unfreezing


def test_unfreezing_everything_undoes_freezing() -> None:
    """All parts are trained again, and no module is held."""
    model = net()
    freeze(model)
    unfreeze(model)
    assert held(model) == set()
    before = state(model)
    train(model)
    assert moved_parts(before, model) == {"shift", "first", "second", "third", "head"}
    assert "first.norm.running_mean" in moved(before, model)


def test_unfrozen_module_is_in_train_mode() -> None:
    """An unfrozen module is in train mode without a call of `train()`."""
    model = net()
    freeze(model)
    unfreeze(model, "third")
    assert model.third.norm.training
    assert not model.second.norm.training


def test_module_around_is_held_until_nothing_in_it_is_frozen() -> None:
    """The root is released together with the last frozen part."""
    model = net()
    freeze(model, except_=["shift", "third", "head"])
    unfreeze(model, "first")
    assert "" in held(model)
    unfreeze(model, "second")
    assert held(model) == set()


def test_module_around_is_held_while_a_parameter_of_its_own_is_frozen() -> None:
    """A root with a frozen parameter of its own is held, although all of its children are free."""
    model = net()
    freeze(model)
    unfreeze(model, ["first", "second", "third", "head"])
    assert held(model) == {""}
    assert not model.shift.requires_grad


def test_unfreezing_what_is_trainable_changes_nothing() -> None:
    """The modules around a trainable head stay held."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3)))
    freeze_and_replace_head(model, num_classes=3)
    before = held(model)
    unfreeze(model, "1.0")
    assert held(model) == before == {"", "0", "1"}


def test_unfreezing_ignores_integer_parameters() -> None:
    """An integer parameter cannot require a gradient."""
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_parameter("index", nn.Parameter(torch.arange(3), requires_grad=False))
    freeze(model)
    unfreeze(model)
    assert not model.get_parameter("index").requires_grad


def test_existing_optimizer_trains_what_is_unfrozen() -> None:
    """Parameters keep their identity, so the optimizer need not be rebuilt."""
    model = net()
    freeze(model, "first")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(model, optimizer)
    unfreeze(model, "first")
    before = state(model)
    train(model, optimizer)
    assert "first" in moved_parts(before, model)


# is_frozen


def test_parameters_without_gradients_are_not_frozen() -> None:
    """A model with `requires_grad=False` alone would update its statistics."""
    model = net()
    model.requires_grad_(False).eval()
    assert not is_frozen(model)


def test_frozen_parameter_of_a_trainable_module() -> None:
    """`is_frozen` accepts the name of a parameter."""
    model = net()
    freeze(model, "head.weight")
    assert is_frozen(model, "head.weight")
    assert not is_frozen(model, "head.bias")
    assert not is_frozen(model, "head")


def test_several_parts_are_frozen_if_all_are() -> None:
    """Each part that a pattern matches must be frozen."""
    model = net()
    freeze(model, ["first", "second"])
    assert is_frozen(model, ["first", "second.norm"])
    assert not is_frozen(model, "*.norm")


def test_parameter_that_was_made_trainable_by_hand_is_not_frozen() -> None:
    """`is_frozen` checks the parameters and not only what was requested."""
    model = net()
    freeze(model)
    model.head.bias.requires_grad_(True)
    assert not is_frozen(model)


def test_module_without_its_hook_is_not_frozen() -> None:
    """Removing all hooks of a module unfreezes it."""
    model = net()
    freeze(model)
    model.first.norm._forward_pre_hooks.clear()
    assert not is_frozen(model)
    freeze(model)
    assert is_frozen(model)


# Refusals


def test_tied_tensor_is_not_frozen_under_one_name() -> None:
    """The message contains both names of the tied weight, and the model is unchanged."""
    model = Tied()
    with pytest.raises(FreezeError, match=r"`embed\.weight`.*`decode\.weight`"):
        freeze(model, "embed")
    assert held(model) == set()
    assert trainable(model) == {"embed", "body"}  # The shared one is listed once.


def test_tied_tensor_is_not_frozen_by_naming_one_parameter() -> None:
    """This includes parameters that are named by themselves."""
    with pytest.raises(FreezeError, match=r"`decode\.weight`"):
        freeze(Tied(), "decode.weight")


def test_tied_tensor_is_not_unfrozen_under_one_name() -> None:
    """Both parts must be unfrozen together."""
    model = Tied()
    freeze(model)
    with pytest.raises(FreezeError, match=r"`decode\.weight`.*`embed\.weight`"):
        unfreeze(model, "embed")
    assert is_frozen(model)


def test_tied_tensor_is_frozen_under_all_names() -> None:
    """It can be frozen and unfrozen if both parts are named."""
    model = Tied()
    freeze(model, ["embed", "decode"])
    assert trainable(model) == {"body"}
    unfreeze(model, ["embed", "decode"])
    assert held(model) == set()


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.BatchNorm1d(4, track_running_stats=False), "running statistics"),
        (nn.LazyLinear(4), "no values"),
        (nn.LazyBatchNorm1d(), "no values"),
    ],
    ids=["statistics", "lazy layer", "lazy statistics"],
)
def test_module_that_cannot_be_frozen_is_named(module: nn.Module, named: str) -> None:
    """The model is unchanged if one module cannot be frozen."""
    model = nn.Sequential(nn.Linear(4, 4), module)
    with pytest.raises(FreezeError, match=rf"`1` is a .*{named}"):
        freeze(model)
    assert held(model) == set()
    assert model.get_parameter("0.weight").requires_grad


def test_script_module_cannot_be_frozen() -> None:
    """Its submodules run without hooks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated.
        scripted: nn.Module = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(FreezeError, match="ScriptModule"):
        freeze(nn.Sequential(scripted))


def test_model_of_a_wrong_type_is_an_error() -> None:
    """The message contains the type of the argument."""
    with pytest.raises(InvalidTypeError, match="str"):
        freeze("resnet18")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# A new process


@pytest.mark.slow
def test_model_is_frozen_again_in_a_new_process(tmp_path: Path) -> None:
    """Rebuilding, loading and freezing in a new process gives the same digests."""
    build = """
import torch
from torch import nn
from finetunelib import freeze_and_replace_head
from finetunelib.finetuning import freeze, is_frozen, load_weights, save_weights

def build():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
"""
    first = f"""{build}
model = freeze_and_replace_head(build(), num_classes=5)
save_weights(model, "model.safetensors")
print(freeze(model, except_="3"))
"""
    second = f"""{build}
model = freeze_and_replace_head(build(), num_classes=5)
report = load_weights(model, "model.safetensors")
digests = freeze(model, except_="3")
assert is_frozen(model, ["0", "1", "2"]) and not is_frozen(model, "3")
assert {{name: report.digests[name] for name in digests}} == digests
model.train()
assert torch.equal(model(torch.ones(2, 4)), model(torch.ones(2, 4)))
print(digests)
"""
    printed = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout
        for code in (first, second)
    ]
    assert printed[0] == printed[1]
    assert "1.running_var" in printed[0]


def test_weights_file_does_not_contain_freezing(tmp_path: Path) -> None:
    """A frozen model is saved to the same bytes as an unfrozen one."""
    model = net()
    plain = save_weights(model, tmp_path / "plain.safetensors").read_bytes()
    freeze(model)
    assert save_weights(model, tmp_path / "frozen.safetensors").read_bytes() == plain


class TiedByMemory(nn.Module):
    """An embedding and a layer whose two parameters share memory."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layer = nn.Linear(4, 5, bias=False)
        self.layer.weight.data = self.embedding.weight.data

    def forward(self, ids: Tensor) -> Tensor:
        outputs: Tensor = self.layer(self.embedding(ids))
        return outputs


def test_parameters_that_share_memory_are_not_frozen_separately() -> None:
    """Training one of them would change the other."""
    with pytest.raises(FreezeError, match=r"embedding\.weight.*layer\.weight"):
        freeze(TiedByMemory(), "embedding")


def test_statistics_that_a_trainable_norm_moves_are_not_frozen() -> None:
    """Two norms that share statistics can only be frozen together."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].running_mean = model[0].running_mean
    with pytest.raises(FreezeError, match=r"`0`.*`1`"):
        freeze(model, "0")
    assert not held(model)
    freeze(model)
    assert is_frozen(model)


class Rooted(nn.Module):
    """A model whose root has two parameters, one of them fixed by its author."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))
        self.position = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.layer = nn.Linear(4, 4)


def test_root_is_released_with_the_last_part_that_was_frozen() -> None:
    """A parameter that its author had fixed does not keep the root held."""
    model = Rooted()
    freeze(model, except_="token")
    assert "" in held(model)
    unfreeze(model, "layer")
    assert not held(model)

    freeze(model)
    unfreeze(model, "layer")
    assert held(model) == {""}
    unfreeze(model, "token")
    assert not held(model)


def test_parts_of_a_compiled_block_have_the_names_inside_it() -> None:
    """Names that `find_head` returns are valid for `freeze`."""
    block = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)))
    model = nn.Sequential(nn.Linear(4, 4), cast("nn.Module", block))
    digests = freeze(model, except_="1.1")
    assert set(digests) == {"0.weight", "0.bias", "1.0.weight", "1.0.bias"}


def test_digests_of_a_wrapped_model_have_the_names_inside_it() -> None:
    """They can be compared with those of `load_weights`."""
    model = nn.DataParallel(nn.Sequential(nn.Linear(2, 2)))
    assert set(freeze(model)) == {"0.weight", "0.bias"}


@pytest.mark.parametrize("layout", ["sparse", "csr", "conjugate"])
def test_buffers_of_other_layouts_have_digests(layout: str) -> None:
    """Sparse and conjugated buffers are read, and a change is noticed."""
    kinds: dict[str, Callable[[], Tensor]] = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "csr": lambda: torch.eye(3).to_sparse_csr(),
        "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    }
    model = nn.Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CSR is in beta.
        kept = kinds[layout]()
        model.register_buffer("kept", kept)
        first = freeze(model)
        model.register_buffer("kept", kept * 2)
        assert fingerprint(model).keys() == first.keys()
        assert fingerprint(model) != first


def test_reading_digests_leaves_memory_that_can_be_resized() -> None:
    """Quantization observers resize their buffers after freezing."""
    model = nn.Linear(2, 2)
    model.register_buffer("seen", torch.zeros(2))
    freeze(model)
    cast("Tensor", model.seen).resize_(5)
    assert cast("Tensor", model.seen).shape == (5,)


def test_excepting_everything_by_a_pattern_is_an_error() -> None:
    """The root, which no pattern matches, has nothing of its own to freeze."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(InvalidArgumentError, match="nothing is left"):
        freeze(model, except_="*")
    assert not held(model)
