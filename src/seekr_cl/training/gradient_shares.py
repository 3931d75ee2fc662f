"""Which loss term owns the update: each term's gradient norm, its share, and weights that keep a share.

Clipping hides a term that dwarfs the others (the official code's replay gradients are 30 to 100 times the new task's at
lambda2 = 1e3), so the norms are measured term by term.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seekr_cl.distributed import collectives
from seekr_cl.distributed.engines import average, norm_of
from seekr_cl.methods import LossTerm

MEMORY = 0.7
"""How much of the former estimate a new measurement leaves: single batches are noisy."""
ADDED_BYTES = 1 << 30
"""Trained weights of at most this size have their measured gradients added up, which takes one more copy of them."""
NOISE = 1e-5
"""A gradient this small beside the others' is rounding: replayed first in a task, the student is the teacher still."""


class GradientShares:
    """Running gradient norms of all loss terms.

    Attributes:
        norms: ``{term: norm}`` of each weighted term's gradient, smoothed over measurements.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.norms: dict[str, float] = {}
        self._unweighted: dict[str, float] = {}
        self._seen: dict[str, int] = {}

    def state(self) -> dict[str, dict[str, Any]]:
        """All that the next measurement depends on, as JSON."""
        return {"norms": self.norms, "unweighted": self._unweighted, "seen": self._seen}

    def load_state(self, content: dict[str, dict[str, Any]]) -> None:
        """Takes what ``state`` gave."""
        self.norms, self._unweighted = dict(content["norms"]), dict(content["unweighted"])
        self._seen = dict(content["seen"])

    def due(self, kind: str) -> bool:
        """Whether this batch of that kind is one to measure; the first always is."""
        count = self._seen.get(kind, 0)
        self._seen[kind] = count + 1
        return self.every > 0 and count % self.every == 0

    def measure(
        self,
        terms: dict[str, LossTerm],
        model: nn.Module,
        trained: Sequence[nn.Parameter],
        again: Callable[[], dict[str, LossTerm]] | None = None,
    ) -> None:
        """Takes each term's gradient by itself; ``.grad`` is what it was afterwards, and the graph is kept.

        Args:
            terms: of one batch.
            model: as it trains, possibly wrapped, after a forward pass ``alone``; the gradients are averaged over the
                processes here.
            trained: its parameters that are trained.
            again: makes the terms by another forward pass, for each of them: where one serves one backward pass only.
        """
        kept = [parameter.grad for parameter in trained]
        for name in terms:
            for parameter in trained:
                parameter.grad = None
            taken = terms if again is None else again()
            _only(name, taken).backward(retain_graph=taken is terms)
            average(model)
            self.note_gradient(name, terms[name].weight, 1.0, trained)
        for parameter, grad in zip(trained, kept):
            parameter.grad = grad

    def measure_and_add(
        self,
        terms: dict[str, LossTerm],
        trained: Sequence[nn.Parameter],
        factor: float,
        steer: Callable[[dict[str, LossTerm]], None],
    ) -> None:
        """``measure`` that also is the step's own backward pass: the weighted gradients add up in ``.grad``.

        The loss terms become leaves with the same values, whose backward pass does nothing more. Room is needed for
        one more copy of the gradients, and for one of each term whose weight follows from its norm, but for the last.

        Args:
            terms: of one batch, in one process.
            trained: the parameters that are trained.
            factor: of the step's own loss.
            steer: sets the weights of the terms that ask for a share, once all of them are measured.
        """
        total = [parameter.grad for parameter in trained]
        steered: dict[str, list[Tensor | None]] = {}
        *_, last = terms
        for name, term in terms.items():
            for parameter in trained:
                parameter.grad = None
            _only(name, terms).backward(retain_graph=name != last)
            self.note_gradient(name, term.weight, 1.0, trained)
            own = [parameter.grad for parameter in trained]
            if term.grad_norm_share is None:
                total = _added(total, own, term.weight * factor)
            else:
                steered[name] = own
        steer(terms)
        for name, own in steered.items():
            total = _added(total, own, terms[name].weight * factor)
        for parameter, grad in zip(trained, total):
            parameter.grad = grad
        for term in terms.values():
            term.value = term.value.detach().requires_grad_()

    def measure_apart(self, take: Callable[[], dict[str, LossTerm]], trained: Sequence[nn.Parameter]) -> None:
        """``measure`` that does not touch ``.grad``, which another engine may watch; needs room for all gradients.

        Args:
            take: makes the terms by a forward pass, called once for each term.
            trained: the parameters that are trained.
        """
        terms = take()
        for number, name in enumerate(terms):
            alone = _only(name, take() if number else terms)
            # Leaves that are not asked for are passed over with their hooks, which inject the attention term.
            others = [leaf for leaf in _leaves(alone) if not isinstance(leaf, nn.Parameter)]
            gradients = torch.autograd.grad(alone, [*trained, *others], allow_unused=True)[: len(trained)]
            means = (collectives.all_reduce_sum(one) / collectives.world_size() for one in gradients if one is not None)
            self._note_norm(name, terms[name].weight, norm_of(means))

    def note_gradient(self, name: str, weight: float, factor: float, parameters: Iterable[nn.Parameter]) -> None:
        """Notes a term's gradient that stands in ``.grad``, multiplied by ``factor``."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._note_norm(name, weight, norm_of(gradients) / abs(factor))

    def _note_norm(self, name: str, weight: float, norm: float) -> None:
        former = self._unweighted.get(name)
        # Where the student still is its teacher there was nothing but rounding; a mean with that would mean nothing.
        if former is None or former <= NOISE * self._rest(name):
            self._unweighted[name] = norm
        else:
            self._unweighted[name] = MEMORY * former + (1 - MEMORY) * norm
        self.norms[name] = self._unweighted[name] * abs(weight)

    def reweigh(self, name: str, weight: float) -> None:
        """Says that a term now has another weight than when it was measured."""
        self.norms[name] = self._unweighted.get(name, 0.0) * weight

    def shares(self) -> dict[str, float]:
        """Each term's part of the sum of all norms."""
        total = sum(self.norms.values())
        return {name: norm / total for name, norm in self.norms.items()} if total else {}

    def _rest(self, name: str) -> float:
        """The summed norms of all other terms."""
        return sum(norm for other, norm in self.norms.items() if other != name)

    def weight_for(self, name: str, share: float) -> float | None:
        """The weight that gives a term this share of the summed norms of all terms, the new task's among them.

        Returns:
            ``None`` as long as the term has no gradient to weigh, or one that is rounding.
        """
        own = self._unweighted.get(name, 0.0)
        rest = self._rest(name)
        return share / (1 - share) * rest / own if own > NOISE * rest > 0 else None


def _added(total: Sequence[Tensor | None], own: Sequence[Tensor | None], factor: float) -> list[Tensor | None]:
    """Gradients with others times a factor, in the place of either."""
    return [
        one if other is None else other.mul_(factor) if one is None else one.add_(other, alpha=factor)
        for one, other in zip(total, own)
    ]


def _leaves(value: Tensor) -> list[Tensor]:
    """All tensors that a backward pass from here would leave a gradient in."""
    found, waiting, seen = [], [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return found


def _only(name: str, terms: dict[str, LossTerm]) -> Tensor:
    """One term; the others enter with factor zero, since the attention term's gradient flows through their graph."""
    parts = [term.value * (1.0 if other == name else 0.0) for other, term in terms.items()]
    return torch.stack([part.reshape(()) for part in parts]).sum()
