"""SGD, Adam and AdamW by PyTorch's own functions, without what `optimizer.step()` does around them.

For a small model, the entry for the profiler, the hooks and the choice of an implementation take
longer than the arithmetic. The functions are the ones that `optimizer.step()` calls, with the same
arguments, so the weights and the state of the optimizer are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.adam import adam
from torch.optim.sgd import sgd

#: Returns the calls that make up a step, one for each parameter group, or `None` if only the method
#: of the optimizer can take it.
Collect: TypeAlias = Callable[[torch.optim.Optimizer], list[Callable[[], None]] | None]


def collect_for(optimizer: torch.optim.Optimizer) -> Collect:
    """Return how the calls of a step are collected. If that is not known, there are none.

    A derived class may change the step, and an option of a later version of PyTorch may too.
    """
    collect, options = _KNOWN.get(type(optimizer), (_no_calls, frozenset()))
    known = optimizer.defaults.keys() == options and _uses_single_tensors(optimizer)
    return collect if known else _no_calls


def profiler_switch() -> Callable[[], bool]:
    """Return a function that tells whether a profiler is on, or might be on unnoticed."""
    ask: Callable[[], bool] = getattr(torch.autograd, "_profiler_enabled", lambda: True)
    return ask


def _uses_single_tensors(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer updates one parameter after the other by default.

    So it does on the CPU, unless `foreach` or `fused` was passed.
    """
    choose = getattr(torch_optimizer, "_default_to_fused_or_foreach", None)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    plain = all(
        type(parameter) is nn.Parameter and parameter.is_cpu and not parameter.is_complex()
        for parameter in parameters
    )
    return plain and choose is not None and not any(choose(parameters[:1], False, False))


def is_of_torch(method: Any) -> bool:  # Any: a method, or a function that replaced it.
    """Return whether a method of an optimizer is PyTorch's, with PyTorch's wrappers only."""
    function = getattr(method, "__func__", method)
    while function is not None:
        module = getattr(function, "__globals__", {}).get("__name__", "")
        if not (module.startswith("torch.optim.") or module == "torch._compile"):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _no_calls(optimizer: torch.optim.Optimizer) -> None:
    """Return `None`."""


def _sgd_calls(optimizer: torch.optim.Optimizer) -> list[Callable[[], None]] | None:
    calls: list[Callable[[], None]] = []
    for group in optimizer.param_groups:
        if group["foreach"] or group["fused"] or group["differentiable"]:
            return None
        parameters, gradients = _with_gradients(group)
        momentum, buffers = group["momentum"], []
        if momentum != 0:
            buffers = [optimizer.state[p].get("momentum_buffer") for p in parameters]
            if any(buffer is None for buffer in buffers):
                return None
        call = partial(
            sgd,
            parameters,
            gradients,
            buffers,
            foreach=False,
            fused=False,
            weight_decay=group["weight_decay"],
            momentum=momentum,
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        calls.append(call)
    return calls


def _adam_calls(optimizer: torch.optim.Optimizer) -> list[Callable[[], None]] | None:
    calls: list[Callable[[], None]] = []
    for group in optimizer.param_groups:
        if group["foreach"] or group["fused"] or group["differentiable"] or group["capturable"]:
            return None
        parameters, gradients = _with_gradients(group)
        states = [optimizer.state[parameter] for parameter in parameters]
        if not all(states) or any(gradient.is_sparse for gradient in gradients):
            return None
        beta1, beta2 = group["betas"]
        amsgrad = group["amsgrad"]
        call = partial(
            adam,
            parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if amsgrad else [],
            [state["step"] for state in states],
            foreach=False,
            fused=False,
            decoupled_weight_decay=group["decoupled_weight_decay"],
            amsgrad=amsgrad,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
        calls.append(call)
    return calls


def _with_gradients(group: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters of a group that have gradients, and the gradients."""
    parameters, gradients = [], []
    for parameter in group["params"]:
        gradient = parameter.grad
        if gradient is not None:
            parameters.append(parameter)
            gradients.append(gradient)
    return parameters, gradients


_OPTIONS = {"lr", "weight_decay", "maximize", "foreach", "differentiable", "fused"}
_SGD_OPTIONS = frozenset({"momentum", "dampening", "nesterov", *_OPTIONS})
_ADAM_OPTIONS = frozenset(
    {"betas", "eps", "amsgrad", "capturable", "decoupled_weight_decay", *_OPTIONS}
)

#: For each class: how its calls are collected, and the options that they pass.
_KNOWN: dict[type[torch.optim.Optimizer], tuple[Collect, frozenset[str]]] = {
    SGD: (_sgd_calls, _SGD_OPTIONS),
    Adam: (_adam_calls, _ADAM_OPTIONS),
    AdamW: (_adam_calls, _ADAM_OPTIONS),
}
