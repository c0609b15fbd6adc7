"""Findings about modules whose mode, or being frozen, cannot be meant."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from finetunelib._messages import quoted
from finetunelib.finetuning._digests import has_initial_values
from finetunelib.finetuning._frozen_hook import stays_in_eval_mode
from finetunelib.training._diagnosis.finding import Finding


def mode_findings(model: nn.Module) -> Iterator[Finding]:
    """Yield the findings about the modes of a model that is about to be trained."""
    still = [(name, module) for name, module in model.named_modules() if not module.training]
    if not still:
        return
    norms = [name for name, module in still if _is_norm_in_eval(module)]
    if norms:
        yield Finding(
            "batchnorm-in-eval",
            "likely",
            f"{len(norms)} trainable BatchNorm layers are in eval mode, although the model is in "
            f"train mode: {quoted(norms)}. Their weights are trained, and their statistics are not "
            "updated.",
            "Call `model.train()` before `fit`. To keep the statistics, freeze these layers with "
            "`finetunelib.finetuning.freeze`.",
        )
    modules = dict(model.named_modules())
    drops = [
        name
        for name, module in still
        if isinstance(module, _DropoutNd)
        and module.p > 0
        and _is_eval_part(modules.get(name.rpartition(".")[0]))
    ]
    if drops:
        yield Finding(
            "dropout-in-eval",
            "likely",
            f"{len(drops)} dropout layers do nothing, because a trainable part of the model is in "
            f"eval mode: {quoted(drops)}.",
            "Call `model.train()` before `fit`.",
        )


def head_findings(model: nn.Module) -> Iterator[Finding]:
    """Yield the finding about a new head that is frozen with its initial values."""
    # peft keeps the frozen original of a module that it trains a copy of.
    heads = [
        name
        for name, module in model.named_modules()
        if "original_module" not in name.split(".") and has_initial_values(module)
    ]
    if heads:
        yield Finding(
            "new-head-frozen",
            "likely",
            f"The new head {quoted(heads)} is frozen and has its initial values, so the outputs "
            "come from random weights.",
            f"Unfreeze it. With adapters of peft, name it in the configuration: "
            f'`modules_to_save=["{_own_part(heads[0])}"]`.',
        )


def _own_part(name: str) -> str:
    """Return a name without the parts that peft adds."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")


def one_sample_findings(model: nn.Module, samples: int) -> Iterator[Finding]:
    """Yield the finding about BatchNorm in a batch of one sample."""
    if samples != 1:
        return
    norms = [name for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training]
    if norms:
        yield Finding(
            "batchnorm-with-one-sample",
            "certain",
            f"A batch has one sample, from which {len(norms)} BatchNorm layers compute their "
            f"statistics: {quoted(norms)}. In eval mode the model computes something else.",
            "Use larger batches, freeze the BatchNorm layers with "
            "`finetunelib.finetuning.freeze`, or use GroupNorm. Accumulating gradients does not "
            "help.",
        )


def _is_norm_in_eval(module: nn.Module) -> bool:
    """Return whether a BatchNorm in eval mode is trained. One that `freeze` holds is meant."""
    if not isinstance(module, _BatchNorm) or stays_in_eval_mode(module):
        return False
    return any(parameter.requires_grad for parameter in module.parameters())


def _is_eval_part(parent: nn.Module | None) -> bool:
    """Return whether a module is in eval mode by accident: it has parameters that are trained."""
    if parent is None or parent.training or stays_in_eval_mode(parent):
        return False
    return any(parameter.requires_grad for parameter in parent.parameters())
