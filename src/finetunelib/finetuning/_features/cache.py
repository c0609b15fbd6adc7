"""`cache_features`: the features of a frozen backbone, to train its head alone."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from finetunelib._arguments import check_at_least, check_model
from finetunelib._forward.batch import split as split_batch
from finetunelib._preserve import modes_preserved, random_state_preserved
from finetunelib._progress import choose_progress
from finetunelib._public import public
from finetunelib.data._batch import first_of
from finetunelib.data._batches import Batches, Data
from finetunelib.data._dispatch import as_batches
from finetunelib.errors import InvalidTypeError
from finetunelib.finetuning._features.compute import batch_inputs, compute_features
from finetunelib.finetuning._features.split import find_split


@public("finetunelib.finetuning")
def cache_features(
    model: nn.Module, data: Data, *, batch_size: int = 64, progress: bool = True
) -> tuple[Tensor | tuple[Tensor, Tensor], nn.Module]:
    """Compute the features of a frozen backbone once, to train the head on them alone.

    Training the head on the features skips the backbone in every epoch. With batches of the same
    size, it gives the same weights, bit for bit, as training the head in the model; sizes can
    differ in rounding. That is checked on the first batch, before the pass over the data: the head
    computes the model's outputs from the features bit for bit, and the features do not depend on
    random numbers, on buffers that change, or on the other samples of a batch. The model is left as
    it was. `Trainer(cache_features=...)` does all of this in `fit`, also for a short last batch.

    Args:
        model: A model whose trainable parameters all belong to the module that computes its
            outputs, such as one that `freeze_and_replace_head` returned.
        data: Inputs, or inputs and targets, in one of the forms that the Trainer takes. Each sample
            is read once, in order, so random transforms are applied once only.
        batch_size: The number of samples in a batch of the pass, at least 1.
        progress: Whether to show the progress of the pass.

    Returns:
        The features `(samples, ...)`, with the targets if there are any, and the head. The head is
        the module in the model, so training it trains the model. Features that would take more than
        a quarter of the available memory are mapped to a temporary file.

    Raises:
        InvalidArgumentError: If the features cannot be cached; the message says why.
        InvalidTypeError: If the data has an unknown form, or its targets are not tensors.
        EmptyDataError: If there are no samples.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp, freeze_and_replace_head
        >>> from finetunelib.finetuning import cache_features
        >>> model = freeze_and_replace_head(build_mlp(8, [16], 10, seed=0), num_classes=3)
        >>> data = (torch.randn(30, 8), torch.arange(30) % 3)
        >>> features, head = cache_features(model, data, progress=False)
        >>> features[0].shape
        torch.Size([30, 16])
        >>> history = Trainer(head, progress=False).fit(features, epochs=2)
    """
    check_model(model)
    check_at_least(1, batch_size=batch_size)
    batches = as_batches(
        data, name="data", batch_size=batch_size, num_workers=0, seed=0, inputs_only=True
    )
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    with random_state_preserved(), modes_preserved(model):
        if not model.training:
            model.train()  # As `fit` does. What is frozen stays in eval mode.
        first = batch_inputs(first_of(batches.in_order(), "data"), device)
        split = find_split(model, first)
        features = compute_features(split, batches, device, choose_progress(progress))
    targets = _targets(batches)
    return (features if targets is None else (features, targets)), split.head


def _targets(batches: Batches) -> Tensor | None:
    """Return the targets of all samples in the order of the data, or `None` if there are none.

    Raises:
        InvalidTypeError: If they are not tensors.
    """
    known = batches.all_targets()
    if known is not None:
        return known
    parts = []
    for batch in batches.in_order():
        if isinstance(batch, Tensor) or len(batch) == 1:
            return None
        _, targets = split_batch(batch)
        if not isinstance(targets, Tensor):
            raise InvalidTypeError(f"The targets must be tensors, got {type(targets).__name__}.")
        parts.append(targets)
    return torch.cat(parts)
