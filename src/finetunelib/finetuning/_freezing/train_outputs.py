"""Models that return something else in train mode, such as detectors, which return losses.

Held in eval mode around a part that is trained, such a model could not be trained.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType

from torch import Tensor, nn

from finetunelib._forward.dry_run import dry_run
from finetunelib._messages import quoted
from finetunelib.errors import FreezeError, InvalidInputError
from finetunelib.finetuning._freezing.hold import held_in_eval_mode, release

#: How far calls of a module's own methods are followed from its forward.
_DEPTH = 4


def check_train_outputs(model: nn.Module, held: Callable[[nn.Module], bool]) -> None:
    """Raise if a module that must switch to train mode would be held around a trainable part.

    Args:
        model: The model.
        held: Returns whether a module will be held in eval mode.

    Raises:
        FreezeError: If there is one.
    """
    around = {
        name: module
        for name, module in model.named_modules()
        if _is_around(module, held) and not _is_around(module, held_in_eval_mode)
    }
    if not _changes_outputs(model, around):
        return
    children = [name for name, _ in model.named_children()]
    example = ' `freeze(model, "backbone")`, for example.' if "backbone" in children else ""
    raise FreezeError(
        f"The model ({type(model).__name__}) returns something else in train mode than in eval "
        "mode, as a detector does, so it cannot be held in eval mode around a trainable part. Name "
        f"exactly the parts to freeze:{example} It has {quoted(children)}."
    )


def changes_outputs_around(model: nn.Module, kept: nn.Module) -> bool:
    """Return whether a module around `kept` returns something else in train mode."""
    around = {
        name: module
        for name, module in model.named_modules()
        if module is not kept and kept in module.modules()
    }
    return _changes_outputs(model, around)


def _is_around(module: nn.Module, held: Callable[[nn.Module], bool]) -> bool:
    return held(module) and not all(map(held, module.modules()))


def _changes_outputs(model: nn.Module, around: Mapping[str, nn.Module]) -> bool:
    if not any(_returns_by_mode(type(module)) for module in around.values()):
        return False
    # The code may return the same in both modes, depending on attributes of the model.
    outputs = [_structure(model, training=training) for training in (False, True)]
    return None in outputs or outputs[0] != outputs[1]


def _structure(model: nn.Module, *, training: bool) -> object:
    """Return the kinds of a model's outputs in one mode, or `None` if it cannot be run."""
    seen: list[object] = []
    handles = [
        model.register_forward_pre_hook(lambda module, _: _set_mode(module, training=training)),
        model.register_forward_hook(lambda _, __, output: seen.append(_kinds(output))),
    ]
    try:
        dry_run(model, None)
    except InvalidInputError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen[-1] if seen else None


def _set_mode(model: nn.Module, *, training: bool) -> None:
    """Set the mode of all modules, also of frozen ones. The dry run restores them."""
    for module in model.modules():
        if held_in_eval_mode(module):
            release(module)
    model.train(training)


def _kinds(output: object) -> object:
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, Mapping):
        return {key: _kinds(value) for key, value in output.items()}
    if isinstance(output, tuple | list):
        return [_kinds(value) for value in output]
    return type(output)


def _returns_by_mode(kind: type[nn.Module]) -> bool:
    """Return whether the code of a class returns one thing in train mode and another in eval."""
    return any(map(_has_return_by_mode, _functions(kind)))


def _functions(kind: type[nn.Module]) -> Iterator[ast.AST]:
    """Yield the code of a class's forward and of the methods that it calls, where it is known."""
    names, known = ["forward"], {"forward"}
    for _ in range(_DEPTH):
        following: list[str] = []
        for name in names:
            function = getattr(kind, name, None)
            if not isinstance(function, FunctionType) or (
                hasattr(nn.Module, name) and (getattr(nn.Module, name) is function)
            ):
                continue
            try:
                yield ast.parse(textwrap.dedent(inspect.getsource(function)))
            except (OSError, TypeError, SyntaxError):
                continue
            following += [called for called in function.__code__.co_names if called not in known]
            known.update(following)
        names = following


def _has_return_by_mode(code: ast.AST) -> bool:
    returned = [node.value for node in ast.walk(code) if isinstance(node, ast.Return)]
    names = {node.id for node in returned if isinstance(node, ast.Name)}
    for node in ast.walk(code):
        if isinstance(node, ast.If) and _asks_mode(node.test):
            branches = [ast.Module(body, []) for body in (node.body, node.orelse)]
            if any(isinstance(part, ast.Return) for part in _walk_all(branches)):
                return True
            assigned = [_assigned(branch) for branch in branches]
            if assigned[0] & assigned[1] & names:
                return True
        if (
            isinstance(node, ast.Assign | ast.AnnAssign)
            and isinstance(node.value, ast.IfExp)
            and _asks_mode(node.value.test)
            and _assigned(node) & names
        ):
            return True
    return any(
        isinstance(part, ast.IfExp) and _asks_mode(part.test)
        for value in returned
        if value is not None
        for part in _outer(value)
    )


def _outer(value: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of an expression outside the arguments of calls."""
    yield value
    if not isinstance(value, ast.Call):
        for child in ast.iter_child_nodes(value):
            yield from _outer(child)


def _walk_all(nodes: list[ast.Module]) -> Iterator[ast.AST]:
    for node in nodes:
        yield from ast.walk(node)


def _assigned(code: ast.AST) -> set[str]:
    return {
        node.id
        for node in ast.walk(code)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _asks_mode(test: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Attribute) and part.attr == "training" for part in ast.walk(test)
    )
