"""Whether the last layer of a model is its head, or a hidden layer of a model without one."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from finetunelib._forward.dry_run import DryRun
from finetunelib._wrappers import last_layers, own_modules
from finetunelib.errors import AmbiguousHeadError, HeadError, HeadNotFoundError
from finetunelib.finetuning._heads.class_counts import ancestors
from finetunelib.finetuning._heads.graph import HeadGraph
from finetunelib.finetuning._heads.head import HEAD_LAYERS, Head, layers_of

#: Activations that turn the outputs of a head into probabilities.
_PROBABILITIES = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.Sigmoid)


def check_not_headless(
    model: nn.Module, head: Head, weights: Collection[str], graph: HeadGraph
) -> None:
    """Check that the last layer is not a hidden layer.

    A layer that is followed by an activation, other than one that computes probabilities, is a
    hidden layer, unless the model states that it has as many classes as the layer has outputs:
    torchvision's SqueezeNet ends in a convolution, ReLU and pooling.

    Args:
        model: The unwrapped model.
        head: The layer that the outputs come from.
        weights: The names of the parameters of its weight.
        graph: The graph of a dry run.

    Raises:
        HeadNotFoundError: If it is a hidden layer, or the model states that it has no head.
    """
    check_states_a_head(model, head)
    activation = graph.activation_after(weights)
    if activation is not None and not _states_width(model, head):
        layer = f"nn.Linear({graph.shape[1]}, num_classes)" if len(graph.shape) == 2 else "layer"
        raise HeadNotFoundError(_followed_by(model, head, activation, layer))


def check_states_a_head(model: nn.Module, head: Head) -> None:
    """Check that the modules around a layer do not state that they have no classes.

    Raises:
        HeadNotFoundError: If one has `num_classes=0`, as a timm model without a head.
    """
    for around in ancestors(model, head.name):
        stated = vars(around).get("num_classes")
        if type(stated) is int and stated == 0 and head.module not in _declared(around):
            raise HeadNotFoundError(
                f"The {type(around).__name__} has `num_classes=0`, so it has no head. Create it "
                "with a number of classes, or add a layer after it. To replace a layer all the "
                f"same, name it with `at=`; the last ones are {_last(model)}."
            )


def check_not_followed_by_activation(model: nn.Module, head: Head) -> None:
    """Check the modules that follow a layer in its `nn.Sequential`, if the model does not run.

    Raises:
        HeadNotFoundError: If one is an activation other than one that computes probabilities.
    """
    modules = own_modules(model)
    parent = modules.get(head.name.rpartition(".")[0])
    if not isinstance(parent, nn.Sequential) or _states_width(model, head):
        return
    siblings = list(parent)
    for module in siblings[siblings.index(head.module) + 1 :]:
        if isinstance(module, _PROBABILITIES):
            return
        if type(module).__module__ == nn.ReLU.__module__:
            layer = f"nn.Linear({head.out_features}, num_classes)"
            raise HeadNotFoundError(_followed_by(model, head, type(module).__name__, layer))


def check_not_detector(model: nn.Module, output: object) -> None:
    """Check that a model does not return boxes together with its logits.

    Raises:
        AmbiguousHeadError: If it does, as the detectors of transformers.
    """
    if isinstance(getattr(output, "pred_boxes", None), Tensor):
        raise AmbiguousHeadError(_detector(model))


def check_class_count_matches(model: nn.Module, head: Head, run: DryRun | None) -> None:
    """Check that the head named by the user does not have a class more than the model states.

    Raises:
        HeadError: If it is the class head of a detector like DETR, with a class for no object.
    """
    config = vars(model).get("config")
    labels = getattr(config, "num_labels", None)
    boxes = getattr(model, "bbox_predictor", None) is not None or (
        run is not None and isinstance(getattr(run.output, "pred_boxes", None), Tensor)
    )
    if boxes and type(labels) is int and labels + 1 == head.out_features:
        raise HeadError(_detector(model))


def _detector(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} is a detector: it returns boxes together with its logits, and its "
        "loss depends on the number of classes. Load it with another number of classes, "
        "`from_pretrained(..., num_labels=..., ignore_mismatched_sizes=True)`, and freeze its "
        "backbone with `freeze`."
    )


def _declared(model: nn.Module) -> list[nn.Module]:
    """Return the layers that a model's `get_classifier()` returns, if it has one."""
    get_classifier = getattr(model, "get_classifier", None)
    if not callable(get_classifier):
        return []
    try:
        classifier = get_classifier()
    except Exception:  # noqa: BLE001 - the model's code may fail in any way
        return []
    return list(layers_of(classifier)) if isinstance(classifier, nn.Module) else []


def _states_width(model: nn.Module, head: Head) -> bool:
    stated = [vars(around).get("num_classes") for around in ancestors(model, head.name)]
    return any(type(number) is int and number == head.out_features for number in stated)


def _followed_by(model: nn.Module, head: Head, activation: str, layer: str) -> str:
    return (
        f"The last layer, `{head.name}`, is followed by an activation ({activation}), so it is a "
        f"hidden layer, and the model has no head. Add one: `nn.Sequential(model, {layer})`. If "
        f"`{head.name}` is the head, pass `at={head.name!r}`; the last layers are {_last(model)}."
    )


def _last(model: nn.Module) -> str:
    return last_layers(own_modules(model), HEAD_LAYERS)
