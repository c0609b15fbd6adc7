"""The modules that are trained: the model, and those of the loss and the task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from finetunelib._wrappers import without_partials
from finetunelib.training._tasks.supervised import SupervisedTask
from finetunelib.training._tasks.task import Task


@dataclass(frozen=True, slots=True)
class TrainedModules:
    """The model, and the modules of the loss and the task, whose parameters are trained with it.

    Attributes:
        model: The user's model.
        task: The task, whose modules are read again each time, since they can be replaced.
    """

    model: nn.Module
    task: Task

    @property
    def others(self) -> dict[str, nn.Module]:
        """The modules of the loss and the task by name: `loss`, or `task.` and the attribute."""
        return self._outside(_modules_of(self.task))

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return all parameters with their names, each once: those of the model first."""
        own, others = list(self.model.named_parameters()), list(self._named_others())
        if not others:
            return own
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for name, parameter in (*own, *others):
            found.setdefault(id(parameter), (name, parameter))
        return list(found.values())

    def parameters_to_optimize(self) -> list[nn.Parameter]:
        """Return the model's parameters, and the trainable ones of the loss and the task.

        A frozen module of a task, such as the teacher in distillation, is left out.
        """
        own = list(self.model.parameters())
        known = {id(parameter) for parameter in own}
        others = {id(p): p for _, p in self._named_others() if id(p) not in known}
        return own + [parameter for parameter in others.values() if parameter.requires_grad]

    def all_modules(self) -> Iterator[nn.Module]:
        """Yield the model, the modules of the loss and the task, and all their submodules."""
        for module in (self.model, *self.others.values()):
            yield from module.modules()

    def _named_others(self) -> Iterator[tuple[str, nn.Parameter]]:
        found = _modules_of(self.task).items()
        trained = {name: part for name, part in found if next(part.parameters(), None) is not None}
        for prefix, module in self._outside(trained).items():
            yield from module.named_parameters(prefix)

    def _outside(self, found: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Return the modules that are not part of the model, which is read only if needed."""
        own = {id(module) for module in self.model.modules()} if found else set()
        return {name: module for name, module in found.items() if id(module) not in own}


def _modules_of(task: Task) -> dict[str, nn.Module]:
    if isinstance(task, SupervisedTask):
        return _named("loss", _owner(task.loss_fn))
    if isinstance(task, nn.Module):
        return {"task": task}
    found: dict[str, nn.Module] = {}
    loose: dict[str, nn.Parameter] = {}
    for name, value in vars(task).items():
        if isinstance(value, nn.Parameter):
            loose[name] = value
        else:
            found |= _named(f"task.{name}", value)
    return found | ({"task": nn.ParameterDict(loose)} if loose else {})


def _named(name: str, value: object) -> dict[str, nn.Module]:
    """Return a module, or the modules in a list or mapping, by name."""
    if isinstance(value, nn.Module):
        return {name: value}
    if isinstance(value, Mapping):
        parts: Iterator[tuple[object, object]] = iter(value.items())
    elif isinstance(value, list | tuple):
        parts = iter(enumerate(value))
    else:
        return {}
    return {f"{name}.{key}": part for key, part in parts if isinstance(part, nn.Module)}


def _owner(loss_fn: object) -> object:
    """Return the object of a bound method, or the loss itself. Partials are unwrapped."""
    function = without_partials(loss_fn)
    return getattr(function, "__self__", function)
