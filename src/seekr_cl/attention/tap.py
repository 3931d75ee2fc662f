"""AttentionTap: hands out q, k, v and the output of every attention layer while the model runs its own kernel.

Transformers' models look up their attention function by name in ``AttentionInterface``. The tap swaps the function
registered under the model's own name for one that calls the original and then lets an *action* look on. The name, the
config and the masks stay as they were, so no check anywhere in transformers sees a difference. No modelling file is
patched, and models without an open tap run through the wrapper untouched.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from seekr_cl.attention.call import AttentionCall
from seekr_cl.errors import ModelError

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


class Action(Protocol):
    """What looks on: gets the call and the output of a layer and returns the output (the same, or wrapped)."""

    def __call__(self, call: AttentionCall, output_BLHD: Tensor) -> Tensor:
        """Called once for each attention layer of each forward pass, recomputed ones included."""
        ...


_taps: "WeakKeyDictionary[nn.Module, AttentionTap]" = WeakKeyDictionary()
_installed: dict[str, tuple[AttentionFunction | None, int]] = {}


class AttentionTap:
    """Opens the attention of one model to an action; use it as a context manager or call ``close``.

    Attributes:
        heads: query heads of each layer that can be tapped, ``{layer: H}``, found by running two tokens through the
            model; layers without softmax attention (the recurrent ones of hybrid models) are simply not in it.
        action: who looks on now; ``None`` is nobody. It has to stay until after the backward pass where gradient
            checkpointing recomputes the forward.

    Raises:
        ModelError: if the model's attention does not go through transformers' attention interface.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.action: Action | None = None
        self.heads: dict[int, int] = {}
        self._names = _implementations(model)
        for name in self._names:
            _install(name)
        for module in model.modules():
            if hasattr(module, "layer_idx"):
                _taps[module] = self
        try:
            self.heads = self._find_heads()
        except BaseException:
            self.close()
            raise

    def _find_heads(self) -> dict[int, int]:
        heads: dict[int, int] = {}

        def note(call: AttentionCall, output_BLHD: Tensor) -> Tensor:
            heads.setdefault(call.layer, call.q_BHLD.shape[1])
            return output_BLHD

        training = self.model.training
        self.model.eval()
        try:
            with self.use(note), torch.no_grad():
                ids = torch.zeros((1, 2), dtype=torch.long, device=self.model.device)
                self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        finally:
            self.model.train(training)
        if not heads:
            kind = getattr(self.model.config, "model_type", type(self.model).__name__)
            raise ModelError(
                f"the attention of a '{kind}' model does not go through transformers' AttentionInterface, so its "
                "attention cannot be distilled; use method derpp or replay, or a model that uses the interface"
            )
        return dict(sorted(heads.items()))

    @contextmanager
    def use(self, action: Action | None) -> Iterator[None]:
        """Sets the action for a block of code and puts the former one back."""
        former, self.action = self.action, action
        try:
            yield
        finally:
            self.action = former

    def close(self) -> None:
        """Takes the tap off; the attention functions are the original ones again when the last tap closes."""
        for module in [module for module, tap in _taps.items() if tap is self]:
            del _taps[module]
        for name in self._names:
            _uninstall(name)
        self._names = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _implementations(model: PreTrainedModel) -> list[str]:
    """Names of the attention functions that the model and its parts look up."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    names = {getattr(config, "_attn_implementation", None) or "eager" for config in configs}
    return sorted(names)


def _install(name: str) -> None:
    mapping = AttentionInterface._global_mapping
    original, users = _installed.get(name, (mapping.get(name), 0))
    if users == 0:
        AttentionInterface.register(name, _tapped(original))
    _installed[name] = (original, users + 1)


def _uninstall(name: str) -> None:
    original, users = _installed[name]
    if users > 1:
        _installed[name] = (original, users - 1)
        return
    del _installed[name]
    if original is None:
        del AttentionInterface._global_mapping[name]
    else:
        AttentionInterface.register(name, original)


def _tapped(original: AttentionFunction | None) -> AttentionFunction:
    """The wrapper; without ``original`` (the name "eager") the modelling file's own eager function is the inner one."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        inner = original or sys.modules[type(module).__module__].eager_attention_forward
        output_BLHD, weights = inner(module, query, key, value, attention_mask, *args, **kwargs)
        tap = _taps.get(module)
        if tap is None or tap.action is None:
            return output_BLHD, weights
        return tap.action(_read_call(module, query, key, value, attention_mask, kwargs), output_BLHD), weights

    return attention


def _read_call(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any]
) -> AttentionCall:
    if kwargs.get("s_aux") is not None or getattr(module, "sinks", None) is not None:
        raise ModelError("attention sinks (as in gpt-oss) are not supported by attention distillation yet")
    scaling = kwargs.get("scaling")
    return AttentionCall(
        layer=int(module.layer_idx),  # type: ignore[arg-type]
        q_BHLD=query,
        k_BKLD=key,
        v_BKLD=value,
        mask=mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap=kwargs.get("softcap"),
        window=kwargs.get("sliding_window"),
    )
