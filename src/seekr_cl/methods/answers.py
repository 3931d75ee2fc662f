"""Logits where something uses them: a model's head sees the positions that a loss looks at, and no other.

Its own ``logits_to_keep`` takes the same positions of every row, which between short answers at the ends of rows of
different lengths are most of the batch. So the hidden states are picked where they enter the head, inside the model's
forward pass: autocast, adapters, engines that gather weights, and what the model does to its logits (a soft-cap, a
scale) are as ever. Where the float32 logits of all positions would be larger than ``CHUNK_BYTES``, losses are summed up
chunk by chunk, still within that pass, and a chunk's logits are made again for its gradient.

Shapes: B batch, L padded length, D the model's width, V vocabulary, N positions in use, C of them in one chunk, T sums.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seekr_cl.distributed.dtensor import is_sharded
from seekr_cl.tasks.collate import IGNORE

CHUNK_BYTES = 64 << 20
"""The largest float32 logits that exist at once."""

Finish = Callable[[Tensor], Tensor]
"""From a head's output to logits."""

Sums = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Of logits [C, V] and their places [C] in the flattened batch, ascending: scalars that add up over chunks, or [C]."""

Asked = tuple[Tensor, int, Sums | None]


class AnswerHead:
    """Stands before a model's head, as a hook; ``of`` finds it or puts it there.

    Args:
        model: possibly wrapped by a compiler, by engines and by PEFT.
        head: its output embeddings.

    Attributes:
        asked: for the pass to come, where in the flattened batch logits are wanted, how many tokens a row has (L), and
            what is made of the logits; ``None``: logits of all positions.
        most: how many positions make one chunk; infinite for a head whose chunks cannot be made apart from its model.
        held: of a pass with more than that, the hidden states at all of them and the precision of the pass.
    """

    def __init__(self, model: Any, head: nn.Module) -> None:
        for wrapper in ("_orig_mod", "module"):
            model = getattr(model, wrapper, model)
        model = model.get_base_model() if hasattr(model, "peft_config") else model
        self._head, self._config = head, model.config.get_text_config()
        self.asked: Asked | None = None
        self.most: float = max(1, CHUNK_BYTES // (4 * self._config.vocab_size))
        self.held: tuple[Tensor, torch.autocast] | None = None
        self._finish: Finish | None = None
        # Before the hooks of engines: they let go of the head's weights, and look for gradients of what is given out.
        deliver = model.register_forward_hook(self._deliver, prepend=True, with_kwargs=True)
        self._hooks = head.register_forward_pre_hook(self), deliver

    @classmethod
    def of(cls, model: Any) -> "AnswerHead":
        """The one of a model, whatever has wrapped it."""
        head = getattr(model, "module", model).get_output_embeddings()
        found = [hook for hook in head._forward_pre_hooks.values() if isinstance(hook, cls)]
        return found[0] if found else cls(model, head)

    @classmethod
    def take_off(cls, model: nn.Module) -> None:
        """Leaves none on a model, wherever adapters or engines have put its head."""
        for module in model.modules():
            for hook in [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]:
                found = getattr(hook, "__self__", hook)
                for one in found._hooks if isinstance(found, cls) else ():
                    one.remove()

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The hidden states [1, N, D] that the head is to see; of too many for one chunk the first alone."""
        if self.asked is None:
            return None
        # A prompt that an adapter learns stands before the first token, with outputs of its own.
        hidden_ND = args[0][:, -self.asked[1] :].flatten(0, 1).index_select(0, self.asked[0])
        return (hidden_ND[None] if len(hidden_ND) <= self.most else self._hold(hidden_ND),)

    @torch.compiler.disable
    def _deliver(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Behind the model: what was held of a pass becomes its sums."""
        if self.held is not None and self.asked is not None:
            self._sum_up(lambda: module.forward(*args, **kwargs), output, self.held, self.asked)

    # More than one chunk --------------------------------------------------------------------------------------

    def _hold(self, hidden_ND: Tensor) -> Tensor:
        kind = hidden_ND.device.type
        precision = torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))
        self.held = hidden_ND, precision
        return hidden_ND[None, :1]

    def _sum_up(self, again: Callable[[], Any], output: Any, held: tuple[Tensor, torch.autocast], asked: Asked) -> None:
        """Puts the sums [T] over all chunks, or values [T, N], in the place of the first position's logits.

        Without ``sums`` it is the hidden states [N, D]. A model that does something unknown to its head's output runs
        once more, and in one chunk from then on.
        """
        (hidden_ND, precision), (place_N, _, sums) = held, asked
        self._finish = self._finish or self._found(hidden_ND[:1], precision, output.logits[0])
        if self._finish is None:
            self.most = math.inf
            output.logits = again().logits
        elif sums is None:
            output.logits = hidden_ND
        else:
            # By value: the backward pass makes a chunk again, maybe after a pass about something else.
            one, size = partial(self._summed, sums, precision), int(self.most)
            parts = zip(hidden_ND.split(size), place_N.split(size))
            each = [checkpoint(one, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
            output.logits = torch.stack(each).sum(0) if each[0].dim() == 1 else torch.cat(each, dim=1)

    def _summed(self, sums: Sums, precision: torch.autocast, hidden_CD: Tensor, place_C: Tensor) -> Tensor:
        return torch.stack(list(sums(self.logits(hidden_CD, precision), place_C)))

    def logits(self, hidden_CD: Tensor, precision: torch.autocast, finish: Finish | None = None) -> Tensor:
        """The logits [C, V] of hidden states that were held."""
        finish = finish or self._finish
        assert finish is not None
        with precision:
            return finish(self._head.forward(hidden_CD[None]))[0]

    def is_sharded(self) -> bool:
        """Whether the head's weights are whole only within a pass of the model."""
        return any(is_sharded(weight) or hasattr(weight, "ds_id") for weight in self._head.parameters())

    def _found(self, hidden_1D: Tensor, precision: torch.autocast, own_1V: Tensor) -> Finish | None:
        """What the model does to its head's output, found out at one position; ``None`` if it is nothing known."""
        if self.is_sharded():
            # An engine has let go of its weights already.
            return None

        def off(finish: Finish) -> float:
            ours_1V = self.logits(hidden_1D, precision, finish)
            same = ours_1V.shape == own_1V.shape
            return float((ours_1V.double() - own_1V.double()).abs().max()) if same else math.inf

        with torch.no_grad():
            nearest = min(_finishes(self._config), key=off)
            # Within a few roundings: they divide by some of the factors.
            near = 8 * max(torch.finfo(one.dtype).eps for one in (own_1V, self.logits(hidden_1D, precision, _nothing)))
            return nearest if off(nearest) <= near * max(1.0, float(own_1V.abs().max())) else None


def _nothing(logits: Tensor) -> Tensor:
    return logits


def _capped(cap: float, logits: Tensor) -> Tensor:
    return torch.tanh(logits / cap) * cap


def _capped_in_float32(cap: float, logits: Tensor) -> Tensor:
    return _capped(cap, logits.float())


def _finishes(config: Any) -> Iterator[Finish]:
    """What transformers' models do to logits, with the numbers of a config; what it does not name is left out."""
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        if cap := getattr(config, name, None):
            yield from (partial(_capped, cap), partial(_capped_in_float32, cap))
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"):
        if scale := getattr(config, name, None):
            yield partial(torch.mul, scale)
            yield partial(torch.mul, 1 / scale)
    yield _nothing


def predicting(labels_BL: Tensor) -> Tensor:
    """The positions [B, L] that a labelled token is predicted from."""
    return F.pad(labels_BL[:, 1:] != IGNORE, (0, 1))


def label_sum(logits_CV: Tensor, place_C: Tensor, labels_BL: Tensor) -> Tensor:
    """The cross entropy of the labelled tokens that are predicted from these places, summed up."""
    return label_losses(logits_CV, place_C, labels_BL).sum()


def label_losses(logits_CV: Tensor, place_C: Tensor, labels_BL: Tensor) -> Tensor:
    """The cross entropy [C] of the tokens that are predicted from these places, 0 of those that have no label."""
    return F.cross_entropy(logits_CV.float(), next_labels(labels_BL, place_C), ignore_index=IGNORE, reduction="none")


def next_labels(labels_BL: Tensor, place_C: Tensor) -> Tensor:
    """The labels [C] of the tokens that are predicted from these places."""
    return F.pad(labels_BL[:, 1:], (0, 1), value=IGNORE).flatten()[place_C]
