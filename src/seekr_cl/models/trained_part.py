"""Training a part of a model's weights (``train``): attention, feed-forward layers, or what a pattern finds."""

import re
from typing import Any

from torch import nn

from seekr_cl.errors import ConfigError

PRESETS = {
    "attention": r"(^|\.)(self_attn|self_attention|attention|attn)\.",
    "mlp": r"(^|\.)(mlp|feed_forward|ffn|block_sparse_moe|experts)\.",
}
"""What names of weights have in them, by what of a transformer they belong to."""


def check_pattern(train: str | None) -> None:
    """Refuses a pattern that is none.

    Raises:
        ConfigError: with what is wrong with it.
    """
    try:
        re.compile(PRESETS.get(train or "", train or ""))
    except re.error as error:
        raise ConfigError(
            f"train: {train!r} is not a regular expression ({error}); use one that finds names of weights, or "
            f"{', '.join(PRESETS)}"
        ) from error
    if train == "":
        raise ConfigError("train: an empty pattern finds every weight; remove it")


def chosen(model: nn.Module, train: str) -> dict[str, nn.Parameter]:
    """The weights that are to be trained, by name.

    Args:
        model: any.
        train: a preset's name, or a regular expression that is looked for in the weights' names.

    Raises:
        ConfigError: if there are none, naming some that there are.
    """
    pattern = re.compile(PRESETS.get(train, train))
    named = dict(model.named_parameters())
    found = {name: weight for name, weight in named.items() if pattern.search(name)}
    if not found:
        raise ConfigError(
            f"train: {train!r} finds no weight of this model; its weights have names like {', '.join(list(named)[1:4])}"
        )
    return found


def freeze_others(model: Any, train: str) -> list[nn.Parameter]:
    """Leaves only the chosen weights to be trained.

    Args:
        model: changed in place.
        train: see ``chosen``.

    Returns:
        The weights that are trained no longer, for ``thaw``.

    Raises:
        ConfigError: if nothing is chosen, or the model comes with an adapter.
    """
    if hasattr(model, "peft_config"):
        raise ConfigError("train: the model comes with an adapter, which alone is trained; remove train")
    kept = {id(weight) for weight in chosen(model, train).values()}
    frozen = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in kept]
    for weight in frozen:
        weight.requires_grad_(False)
    # Reentrant checkpointing drops the gradient of a block whose input asks for none.
    model.enable_input_require_grads()
    return frozen


def thaw(model: Any, frozen: list[nn.Parameter]) -> None:
    """Undoes ``freeze_others``."""
    if frozen:
        model.disable_input_require_grads()
    for weight in frozen:
        weight.requires_grad_(True)
