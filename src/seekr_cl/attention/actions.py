"""The three things SEEKR does at an attention layer: record rows, distil rows, measure sensitivity.

Shapes as in ``rows``: B batch, H query heads, L sequence length, D head size, P (sample, head) pairs, R rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from seekr_cl.attention.call import AttentionCall, RowIndex
from seekr_cl.attention.divergence import row_kl
from seekr_cl.attention.rows import attention_rows, seen_entries
from seekr_cl.attention.sensitivity import (
    OutputGradientTap,
    count_valid,
    squared_norm_all,
    squared_norm_seen,
    squared_norm_valid,
)
from seekr_cl.attention.targets import RowTarget

Keep = Callable[[AttentionCall, RowIndex, Tensor], Any]


class RecordRows:
    """Keeps the attention rows of the layers in ``wanted``.

    Args:
        wanted: which rows of which layers.
        keep: makes of a layer's call, index and rows [P, R, L] what is to be kept of them while they are at hand, so
            that no two layers' rows need exist at once; by default the rows themselves.

    Attributes:
        rows: after a forward pass, ``{layer: what was kept}``.
    """

    def __init__(self, wanted: dict[int, RowIndex], keep: Keep = lambda call, index, rows_PRL: rows_PRL) -> None:
        self.wanted = wanted
        self.keep = keep
        self.rows: dict[int, Any] = {}

    def __call__(self, call: AttentionCall, output_BLHD: Tensor) -> Tensor:
        """Records without touching the output."""
        index = self.wanted.get(call.layer)
        if index is not None and not call.repeated:
            with torch.no_grad():
                self.rows[call.layer] = self.keep(call, index, attention_rows(call, index))
        return output_BLHD


class RecordEach:
    """Keeps the attention rows of all heads of the layers of every sample of a batch, each as if it were alone.

    Args:
        heads: of each layer, ``{layer: H}``.
        queries: each sample's query positions; the batch is padded on the right.
        lengths: each sample's tokens.
        keep: for each sample, as in ``RecordRows``.

    Attributes:
        rows: after a forward pass, for each sample ``{layer: what was kept}``.
    """

    def __init__(
        self, heads: dict[int, int], queries: Sequence[Tensor], lengths: Sequence[int], keep: Sequence[Keep]
    ) -> None:
        self.heads, self.queries, self.lengths, self.keep = heads, queries, lengths, keep
        self.rows: list[dict[int, Any]] = [{} for _ in lengths]

    def __call__(self, call: AttentionCall, output_BLHD: Tensor) -> Tensor:
        """Records without touching the output."""
        heads = self.heads.get(call.layer)
        if heads is None or call.repeated:
            return output_BLHD
        head_P = torch.arange(heads, device=output_BLHD.device)
        for number, (query_R, length, keep) in enumerate(zip(self.queries, self.lengths, self.keep, strict=True)):
            index = RowIndex(torch.zeros_like(head_P), head_P, query_R.to(head_P.device).expand(heads, -1))
            with torch.no_grad():
                own = call.of_sample(number, length)
                self.rows[number][call.layer] = keep(own, index, attention_rows(own, index))
        return output_BLHD


class InTurn:
    """Several actions, one after the other."""

    def __init__(self, *actions: Callable[[AttentionCall, Tensor], Tensor]) -> None:
        self.actions = actions

    def __call__(self, call: AttentionCall, output_BLHD: Tensor) -> Tensor:
        """Each gets the output that the one before returned."""
        for action in self.actions:
            output_BLHD = action(call, output_BLHD)
        return output_BLHD


class DistillRows:
    """Computes each layer's weighted row divergence and injects its gradient where q and k are used.

    After the forward pass ``losses()`` gives one scalar per layer to put into the loss. These are leaves: the factor
    that the loss puts on a layer arrives at its leaf at the very start of the backward pass, and the layer's own
    backward then adds factor times the divergence's gradient. That makes the gradient exact with no checkpointing and
    with both kinds of it, the reentrant one included, where a scalar carried out of the layer would silently lose it.

    Args:
        targets: rows of all layers together; several where samples store them in several forms.
        eps: added to the student's probabilities in the logarithm.
    """

    def __init__(self, targets: Sequence[RowTarget], eps: float = 0.0) -> None:
        self.targets: dict[int, list[RowTarget]] = {}
        for target in targets:
            for layer, pairs in target.layers.items():
                self.targets.setdefault(layer, []).append(target.tile(pairs))
        self.eps = eps
        self._values: dict[int, Tensor] = {}
        self._factors: dict[int, Tensor] = {}

    def __call__(self, call: AttentionCall, output_BLHD: Tensor) -> Tensor:
        """Returns the output, through the injector if gradients are on."""
        targets = self.targets.get(call.layer)
        if not targets or call.repeated:
            return output_BLHD
        value = torch.stack([self.compare(call, output_BLHD, target) for target in targets]).sum()
        self._values[call.layer] = value.detach()
        if not value.requires_grad:
            return output_BLHD
        return _Inject.apply(output_BLHD, value, self._factors, call.layer)

    def compare(self, call: AttentionCall, output_BLHD: Tensor, target: RowTarget) -> Tensor:
        """A target's weighted divergence, a scalar with gradient."""
        return row_kl(call, target, self.eps)

    def losses(self) -> dict[int, Tensor]:
        """``{layer: scalar}``: one leaf per layer, to be asked for once after each forward pass, for the loss."""
        return {layer: self._leaf(layer) for layer in sorted(self._values)}

    def _leaf(self, layer: int) -> Tensor:
        leaf = self._values[layer].clone().requires_grad_()

        def note(grad: Tensor) -> None:
            self._factors[layer] = grad

        leaf.register_hook(note)
        return leaf


class _Inject(torch.autograd.Function):
    """The identity on an attention output whose backward also feeds a factor into an auxiliary scalar."""

    @staticmethod
    def forward(ctx: Any, output_BLHD: Tensor, value: Tensor, factors: dict[int, Tensor], layer: int) -> Tensor:
        ctx.factors, ctx.layer, ctx.dtype = factors, layer, value.dtype
        return output_BLHD.view_as(output_BLHD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        factor = ctx.factors.get(ctx.layer)
        return grads[0], None if factor is None else factor.to(ctx.dtype), None, None


class MeasureSensitivity:
    """Collects ||dL/dA||_F^2 of every layer, sample and head during the backward pass.

    Args:
        real_BL: true where a token is real: causal entries of real tokens that the layer's window and mask allow are
            measured. ``None`` measures all L x L entries as the official code does.

    Attributes:
        squared: after the backward pass, ``{layer: [B, H]}``.
        entries: ``{layer: [B]}``, how many entries of A each norm runs over.
    """

    def __init__(self, real_BL: Tensor | None) -> None:
        self.real_BL = real_BL
        self.squared: dict[int, Tensor] = {}
        self.entries: dict[int, Tensor] = {}
        self._parts: dict[int, list[tuple[Tensor, Tensor] | None]] = {}

    def __call__(self, call: AttentionCall, output_BLHD: Tensor) -> Tensor:
        """Returns the output with the gradient tap on it.

        With every weight frozen, gradients begin at the first attention output that passes here: what lies below it
        has no part in any dL/dA.
        """
        if not torch.is_grad_enabled():
            return output_BLHD
        if not output_BLHD.requires_grad:
            output_BLHD = output_BLHD.detach().requires_grad_()
        window = call.window if call.window is not None and call.window < call.k_BKLD.shape[2] else None
        seen_BLL = None if self.real_BL is None else seen_entries(call, self.real_BL)

        # Differential attention uses one map A for several values: dL/dA is the sum of dO V^T over the calls, which is
        # one product with the calls side by side in D, so the last gradient to arrive takes the norm for all.
        parts = self._parts[call.layer] if call.repeated else []
        self._parts[call.layer] = parts
        parts.append(None)
        place = len(parts) - 1

        def receive(dO_BLHD: Tensor, v_BKLD: Tensor) -> None:
            parts[place] = (dO_BLHD, v_BKLD)
            arrived = [part for part in parts if part is not None]
            if len(arrived) < len(parts):
                return
            dO_BLHD, v_BKLD = (torch.cat(tensors, -1) if len(parts) > 1 else tensors[0] for tensors in zip(*arrived))
            parts[:] = [None] * len(parts)
            self._measure(call.layer, dO_BLHD, v_BKLD, window, seen_BLL)

        return OutputGradientTap.apply(output_BLHD, call.v_BKLD, receive)

    def _measure(
        self, layer: int, dO_BLHD: Tensor, v_BKLD: Tensor, window: int | None, seen_BLL: Tensor | None
    ) -> None:
        batch, length = dO_BLHD.shape[:2]
        if self.real_BL is None:
            self.squared[layer] = squared_norm_all(dO_BLHD, v_BKLD)
            self.entries[layer] = torch.full((batch,), length * length)
        elif seen_BLL is not None:
            self.squared[layer] = squared_norm_seen(dO_BLHD, v_BKLD, seen_BLL)
            self.entries[layer] = seen_BLL.sum((1, 2)).cpu()
        else:
            self.squared[layer] = squared_norm_valid(dO_BLHD, v_BKLD, self.real_BL, window)
            self.entries[layer] = count_valid(self.real_BL, window)
