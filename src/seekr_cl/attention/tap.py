"""AttentionTap: hands out q, k, v and the output of every attention layer while the model runs its own kernel.

Transformers' models look up their attention function by name in ``AttentionInterface``. The tap swaps the function
registered under the model's own name for one that calls the original and then lets an *action* look on. The name, the
config and the masks stay as they were, so no check anywhere in transformers sees a difference. No modelling file is
patched, and models without an open tap run through the wrapper untouched.

What a layer was asked to do is read from the arguments of its attention function. The functions behind transformers'
names do not all heed the same ones: packed sequences are in the mask under sdpa, eager and flex attention, and in
``position_ids`` or ``cu_seq_lens_q`` under flash attention. Whatever would change the attention and cannot be read from
a call is an error, never a silent difference.

Shapes: B batch, H query heads, K key/value heads, L sequence length, D head size.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, Self
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from seekr_cl.attention.call import AttentionCall
from seekr_cl.attention.packing import OWNER
from seekr_cl.attention.rows import add_bias
from seekr_cl.errors import ModelError

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


class Action(Protocol):
    """What looks on: gets the call and the output of a layer and returns the output (the same, or wrapped)."""

    def __call__(self, call: AttentionCall, output_BLHD: Tensor) -> Tensor:
        """Called once for each attention layer of each forward pass, recomputed ones included."""
        ...


class _Slot:
    """Where the attention layers of one model find the action.

    It is an attribute of every layer, so that a compiled model guards on a plain attribute and is traced once without
    an action and once with one.
    """

    def __init__(self) -> None:
        self.action: Action | None = None
        self.last_query: ReferenceType[Tensor] | None = None

    def __reduce__(self) -> tuple[type["_Slot"], tuple[()]]:
        """Copies and pickles of a model are not tapped."""
        return _Slot, ()


_SLOT = "_seekr_slot"
_installed: dict[str, tuple[AttentionFunction | None, int]] = {}


class AttentionTap:
    """Opens the attention of one model to an action; use it as a context manager or call ``close``.

    Attributes:
        heads: query heads of each layer that can be tapped, ``{layer: H}``, found by running two tokens through the
            model; layers without softmax attention (the recurrent ones of hybrid models) are simply not in it.
        sizes: components of each layer's head outputs, ``{layer: D}``.
        action: who looks on now; ``None`` is nobody. It has to stay until after the backward pass where gradient
            checkpointing recomputes the forward.

    Raises:
        ModelError: if the model's attention does not go through transformers' attention interface.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.heads: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self._slot = _Slot()
        if getattr(model.config, "is_encoder_decoder", False):
            raise ModelError(f"{_named(model)} is an encoder-decoder; only decoder-only models can be distilled")
        self._names = _implementations(model)
        for name in self._names:
            _install(name)
        for module in _layers(model):
            setattr(module, _SLOT, self._slot)
        try:
            self.heads = self._find_heads()
        except BaseException:
            self.close()
            raise

    @property
    def action(self) -> Action | None:
        """Who looks on now."""
        return self._slot.action

    @action.setter
    def action(self, action: Action | None) -> None:
        self._slot.action = action

    def _find_heads(self) -> dict[int, int]:
        heads: dict[int, int] = {}

        def note(call: AttentionCall, output_BLHD: Tensor) -> Tensor:
            if call.layer in heads and not call.repeated:
                raise ModelError(
                    f"{_named(self.model)} runs attention layer {call.layer} more than once in a forward pass (it is "
                    "recurrent in depth), so that a layer's head has no one attention map to distil"
                )
            heads[call.layer] = call.q_BHLD.shape[1]
            self.sizes[call.layer] = output_BLHD.shape[-1]
            return output_BLHD

        training = self.model.training
        self.model.eval()
        try:
            with self.use(note), torch.no_grad():
                ids = torch.zeros((1, 2), dtype=torch.long, device=self.model.device)
                self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        except ModelError:
            raise
        except Exception as error:
            if _asks_interface(self.model):
                raise
            raise ModelError(_refusal(self.model)) from error
        finally:
            self.model.train(training)
        if not heads:
            raise ModelError(_refusal(self.model))
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
        for module in _layers(self.model):
            if module.__dict__.get(_SLOT) is self._slot:
                delattr(module, _SLOT)
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


@contextmanager
def unwatched(model: PreTrainedModel) -> Iterator[None]:
    """A block of code in which no tap's action looks on, whoever has tapped the model."""
    slots = {id(slot): slot for layer in _layers(model) if (slot := layer.__dict__.get(_SLOT)) is not None}
    former = [(slot, slot.action) for slot in slots.values()]
    for slot, _ in former:
        slot.action = None
    try:
        yield
    finally:
        for slot, action in former:
            slot.action = action


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if hasattr(module, "layer_idx"))


def _named(model: nn.Module) -> str:
    return f"a '{getattr(model.config, 'model_type', type(model).__name__)}' model"


def _asks_interface(model: nn.Module) -> bool:
    """Whether a modelling file that the model comes from looks its attention function up at all."""
    names = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    files = [sys.modules.get(name) for name in names - {PreTrainedModel.__module__}]
    return any("ALL_ATTENTION_FUNCTIONS" in vars(file) for file in files if file is not None)


def _refusal(model: nn.Module) -> str:
    """Why no attention layer of a model was reached."""
    advice = "use method derpp or replay, or a model that uses the interface"
    if not hasattr(model.config, "num_attention_heads"):
        return f"{_named(model)} has no softmax attention at all, so there are no rows to distil; {advice}"
    if _asks_interface(model):
        return (
            f"no attention layer of {_named(model)} asked transformers' AttentionInterface: either its attention was "
            f"replaced (by Unsloth or another patch), or all layers of this config are recurrent ones; {advice}"
        )
    return (
        f"the attention of {_named(model)} does not go through transformers' AttentionInterface, so its "
        f"attention cannot be distilled; {advice}"
    )


def _install(name: str) -> None:
    mapping = AttentionInterface._global_mapping
    original, users = _installed.get(name, (mapping.get(name), 0))
    if users == 0:
        AttentionInterface.register(name, _tapped(name, original))
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


def _tapped(name: str, original: AttentionFunction | None) -> AttentionFunction:
    """The wrapper; without ``original`` (the name "eager") the modelling file's own eager function is the inner one."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        inner = original or _own_eager(module)
        output_BLHD, weights = inner(module, query, key, value, attention_mask, *args, **kwargs)
        slot = getattr(module, _SLOT, None)
        if slot is None or slot.action is None:
            return output_BLHD, weights
        return _look_on(slot, output_BLHD, name, module, query, key, value, attention_mask, kwargs), weights

    return attention


def _own_eager(module: nn.Module) -> AttentionFunction:
    """The eager function of the modelling file; that of a base class's file where a subclass lives elsewhere."""
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise ModelError(f"the file of {type(module).__name__} has no eager_attention_forward")


# An action takes and keeps tensors in plain Python, which a graph cannot hold: one graph break a layer, and only while
# an action is set.
@torch._dynamo.disable
def _look_on(slot: _Slot, output_BLHD: Tensor, name: str, module: nn.Module, query: Tensor, *rest: Any) -> Tensor:
    action: Any = slot.action
    call = read_call(name, module, query, *rest)
    # Differential attention uses one map for several values: the same queries come again.
    last = None if slot.last_query is None else slot.last_query()
    slot.last_query = ref(query)
    call = replace(call, repeated=last is query)
    plan = getattr(getattr(module, OWNER, None), "plan", None)
    return action(call, output_BLHD) if plan is None else plan.look(action, call, output_BLHD)


def read_call(
    name: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any]
) -> AttentionCall:
    """What one layer's attention was asked to do.

    Args are those of its function, queries [B, H, L, D], keys and values [B, K, L, D], under that function's name in
    transformers ("sdpa", "eager", "flash_attention_2", ...). ModelError for attention that is not causal self-attention
    over one key a token, or that depends on something which only the kernel knows.
    """
    kind = type(module).__name__
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise ModelError(f"{kind} does not know its layer index, so its attention cannot be attributed to a layer")
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise ModelError(f"{kind} (layer {layer}) attends in both directions; only causal attention can be distilled")
    if key.shape[2] != query.shape[2]:
        raise ModelError(
            f"{kind} (layer {layer}) has {key.shape[2]} keys for {query.shape[2]} tokens (cross attention, compressed "
            "keys or a cache); only attention with one key a token can be distilled"
        )
    flash = "flash" in name
    if flash and any(kwargs.get(sparse) is not None for sparse in ("indices", "block_indices")):
        raise ModelError(f"{kind} picks its keys inside the flash kernel; load the model with 'sdpa' or 'eager'")
    if (bias := kwargs.get("position_bias")) is not None:
        mask = add_bias(mask, bias, kwargs.get("sliding_window"))
    scaling, sink_H = kwargs.get("scaling"), _sinks(module, query.shape[1], kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    shape = scaling, kwargs.get("softcap"), kwargs.get("sliding_window"), sink_H
    segment_BL = _segments(query, kwargs) if flash and mask is None else None
    return AttentionCall(layer, query, key, value, mask, *shape, segment_BL)


def _sinks(module: nn.Module, heads: int, kwargs: dict[str, Any]) -> Tensor | None:
    """Each head's sink; eager functions take it from the module, flash and flex attention from the arguments."""
    sinks = kwargs.get("s_aux")
    if sinks is None:
        sinks = getattr(module, "sinks", None)
    if not isinstance(sinks, Tensor):
        return None
    if sinks.numel() != heads:
        raise ModelError(f"{type(module).__name__} has sinks of shape {tuple(sinks.shape)} for {heads} heads")
    return sinks.reshape(heads)


def _segments(query: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
    """Number of each token's packed sequence, by the rules of transformers' flash attention without a mask.

    Boundaries given in ``cu_seq_lens_q`` win; otherwise a single row of ``position_ids`` starts a sequence at each 0.
    With several rows the positions are not looked at, so packing is not there.
    """
    batch, _, length, _ = query.shape
    if all(kwargs.get(key) is not None for key in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")):
        token_N = torch.arange(batch * length, device=query.device)
        ends = kwargs["cu_seq_lens_q"].to(device=query.device, dtype=token_N.dtype)
        return torch.searchsorted(ends, token_N, right=True).view(batch, length)
    positions = kwargs.get("position_ids")
    if positions is None or batch != 1 or positions.dim() != 2:
        return None
    return (positions == 0).cumsum(-1)
