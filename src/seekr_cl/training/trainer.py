"""SeekrTrainer: transformers' Trainer fed with a schedule of new and old batches, one class for every method."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from seekr_cl.errors import ModelError
from seekr_cl.methods import LossTerm, Method
from seekr_cl.training.batches import ScheduledBatches
from seekr_cl.training.carry import Carry
from seekr_cl.training.config import SeekrConfig
from seekr_cl.training.gradients import GradientShares


class SeekrTrainer(Trainer):
    """Trains on one task; ``learn`` puts the pieces together.

    Args:
        model: the model to train.
        args: a ``SeekrConfig``.
        train_dataset: the task's ``ScheduledBatches``.
        method: adds its loss terms; it holds whatever it attached to the model.
        carry: optimizer state and gradients from the former task, if they are to be carried over.

    Attributes:
        shares: gradient norms of the loss terms.
        weights: term weights that replaced the method's own because it asked for a share.
    """

    args: SeekrConfig

    def __init__(
        self,
        model: nn.Module,
        args: SeekrConfig,
        train_dataset: ScheduledBatches,
        method: Method,
        carry: Carry | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        self._batches = train_dataset
        self._network = model
        if args.n_gpu > 1:
            raise ModelError(
                "several GPUs are visible without a launcher; set CUDA_VISIBLE_DEVICES=0 or use accelerate"
            )
        self.method = method
        self.carry = carry
        self.shares = GradientShares(args.measure_every)
        self.weights: dict[str, float] = {}
        self.loss_is_scaled_for_ga = True
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._measured_next: tuple[dict[str, LossTerm], int] | None = None
        self._group_tokens: int | None = None
        self._group_new = 1

    def get_train_dataloader(self) -> DataLoader:
        """The schedule in its order; an item already is a batch."""
        loader = DataLoader(
            self._batches,
            batch_size=1,
            collate_fn=lambda items: items[0],
            num_workers=self.args.dataloader_num_workers,
            pin_memory=False,
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """Collects an optimizer step's micro-batches and counts the new examples' answer tokens in them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [_answer_tokens(batch["new"]) for batch in batches if "new" in batch]
        self._group_tokens, self._group_new = sum(counts), max(1, len(counts))
        return batches, None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward for each part; the parts of a joint step add up to eq. 13."""
        if self.carry is not None:
            self.carry.put_gradients(self._network)
        losses = [self._part(model, kind, part) for kind, part in inputs.items()]
        return torch.stack(losses).sum()

    def _part(self, model: nn.Module, kind: str, part: Any) -> Tensor:
        loss = super().training_step(model, {kind: part})
        if self._measured_next is not None:
            terms, divisor = self._measured_next
            self._measured_next = None
            ((name, term),) = terms.items()
            self.shares.note_gradient(name, term.weight, term.weight / divisor, model.parameters())
        return loss

    def _leaves_gradient_alone(self, terms: dict[str, LossTerm], model: nn.Module) -> bool:
        """Whether the backward pass to come leaves one term's gradient and nothing else: then it need not run twice."""
        alone = len(terms) == 1 and all(term.weight for term in terms.values()) and self.accelerator.scaler is None
        return alone and all(parameter.grad is None for parameter in model.parameters())

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the method's terms for a batch of one kind, divided by the accumulation steps."""
        ((kind, batch),) = inputs.items()
        if kind == "replay":
            terms = self.method.replay_terms(model, batch)
        else:
            terms = self.method.task_terms(model, batch)
            terms["task"].weight *= self._token_factor(batch)
        self._steer(terms)
        if self.shares.due(kind):
            if self._leaves_gradient_alone(terms, model):
                self._measured_next = (terms, self.current_gradient_accumulation_steps)
            else:
                self.shares.measure(terms, model.parameters())
                self._steer(terms)
        loss = torch.stack([term.weight * term.value for term in terms.values()]).sum()
        self._note(kind, terms, loss)
        return loss / self.current_gradient_accumulation_steps

    def _token_factor(self, batch: Any) -> float:
        """What turns the mean over a batch's tokens into its part of the mean over the whole step's tokens."""
        if self.args.loss_average == "micro_batches" or not self._group_tokens:
            return 1.0
        return _answer_tokens(batch) * self._group_new / self._group_tokens

    def _steer(self, terms: dict[str, LossTerm]) -> None:
        target = self.method.share_target()
        if target is None or target[0] not in terms:
            return
        name, share = target
        weight = self.shares.weight_for(name, share)
        if weight is not None:
            terms[name].weight = weight
            self.weights[name] = weight
            self.shares.reweigh(name, weight)

    def _note(self, kind: str, terms: dict[str, LossTerm], loss: Tensor) -> None:
        values = {name: term.value.detach() for name, term in terms.items()} | {f"{kind}_total": loss.detach()}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=value.device)) + value
            self._counts[name] += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of every loss term since the last line, and each term's share of the gradient norm."""
        if "loss" in logs:
            logs |= {f"loss_{name}": float(total) / self._counts[name] for name, total in self._sums.items()}
            logs |= {f"share_{name}": share for name, share in self.shares.shares().items()}
            logs |= {f"weight_{name}": weight for name, weight in self.weights.items()}
            self._sums.clear()
            self._counts.clear()
        super().log(logs, start_time)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer asked for, with the former task's state if that is carried over."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.carry is not None:
            self.carry.put_state(self._network, optimizer)
        return optimizer

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Counted on the parts; the Trainer would not find the tokens."""
        return sum(super(SeekrTrainer, self).floating_point_ops(part) for part in inputs.values())


def _answer_tokens(batch: Any) -> int:
    return int((batch["labels"][:, 1:] != -100).sum())
