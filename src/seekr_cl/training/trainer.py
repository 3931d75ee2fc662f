"""SeekrTrainer: transformers' Trainer fed with a schedule of new and old batches, one class for every method."""

import math
from collections import defaultdict
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from seekr_cl.config.liger import check_liger
from seekr_cl.config.muon import MUON, make_muon
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.config.tried import refused
from seekr_cl.distributed import collectives
from seekr_cl.distributed.dtensor import is_sharded
from seekr_cl.distributed.engines import alone, average_next, dtypes_of, shard_on_cpu
from seekr_cl.errors import ConfigError, ModelError, TrainingError
from seekr_cl.methods import LossTerm, Method
from seekr_cl.replay.batches import ScheduledBatches
from seekr_cl.replay.forgetting_curve import Reviews
from seekr_cl.training import deepspeed as zero
from seekr_cl.training.checkpoint import Checkpoint
from seekr_cl.training.gradient_shares import ADDED_BYTES, GradientShares
from seekr_cl.training.optimizer_carryover import OptimizerCarryover
from seekr_cl.training.saving import SaveWhenDue
from seekr_cl.training.trainer_resume import ResumableTrainer, SaveState


class SeekrTrainer(ResumableTrainer):
    """Trains on one task; ``learn`` puts the pieces together.

    Args:
        model: the model to train.
        args: a ``SeekrConfig``.
        train_dataset: the task's ``ScheduledBatches``.
        method: adds its loss terms; it holds whatever it attached to the model.
        carry: optimizer state and gradients from the former task, if they are to be carried over.
        save_state: takes the state whenever it is due; None saves none.
        begun: the checkpoint that ``train`` goes on from.
        reviews: replay that comes by a clock of its own, beside what the schedule has.

    Attributes:
        shares: gradient norms of the loss terms.
        weights: term weights that replaced the method's own because it asked for a share.
        rate_source: where the learning rate comes from, for the record.
        replay_factor: what the weights of replay terms are multiplied by.
        review_steps: optimizer steps of replay that stand in no schedule.
    """

    args: SeekrConfig
    rate_source: str = "user"
    replay_factor: int = 1
    review_steps: int = 0

    def __init__(
        self,
        model: nn.Module,
        args: SeekrConfig,
        train_dataset: ScheduledBatches,
        method: Method,
        carry: OptimizerCarryover | None = None,
        save_state: SaveState | None = None,
        begun: Checkpoint | None = None,
        reviews: Reviews | None = None,
        **kwargs: Any,
    ) -> None:
        if args.use_liger_kernel:
            check_liger(model, args.liger_kernel_config or {})
        zero.forget_former()
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False
        with refused(args, "training settings"):
            super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        shard_on_cpu(self)
        engine = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP" if self.is_fsdp_enabled else None
        shards_will_do = method.weight_access == "sharded"
        blind = method.weight_access == "whole" or (shards_will_do and engine == "DeepSpeed")
        if engine and (carry or args.carry_optimizer):
            raise ConfigError(f"{engine}: carry_optimizer does not support sharded weights; use DDP, or remove it")
        if engine and args.optim == MUON:
            raise ConfigError(f"{engine}: optim: muon needs whole matrices; use DDP, or another optim")
        if engine and blind:
            raise ConfigError(
                f"{engine}: method {method.name} works on single weights or gradients, which this engine holds in a "
                f"way it does not know; train with DDP{' or FSDP2' if shards_will_do else ''}"
            )
        self._save_state, self._begun = save_state, begun
        self.reviews = reviews
        if reviews is not None:
            if self.is_deepspeed_enabled:
                raise ConfigError(
                    "DeepSpeed: makes its steps where replay.clock: updates cannot measure them; train with DDP or "
                    "FSDP2, or set clock: steps"
                )
            reviews.trainer = self
            self.add_callback(reviews)
        self.add_callback(TellAfterStep(method, model))
        self.add_callback(SaveWhenDue(self, args.checkpoint_every if save_state else None))
        self._batches = train_dataset
        self._network = model
        self._is_sharded_before = any(map(is_sharded, model.parameters()))
        self._dtypes = dtypes_of(model)
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
        self._trained: list[nn.Parameter] = []
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
        # Not accelerate's way of dealing out batches: each process's dataset holds its share of every micro-batch.
        return prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """Collects an optimizer step's micro-batches and counts the new examples' answer tokens in them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [batch["new"]["tokens"] for batch in batches if "new" in batch]
        self._group_tokens, self._group_new = sum(counts), max(1, len(counts))
        return batches, None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward for each part; the parts of a joint step add up to eq. 13."""
        if not self._trained:
            # After a forward pass some modules of a sharded model show whole parameters in their place.
            self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.carry is not None:
            self.carry.put_gradients(self._network)
        parts = []
        for number, (kind, part) in enumerate(inputs.items(), start=1):
            with zero.held_back(self, number == len(inputs)) if self.is_deepspeed_enabled else nullcontext():
                parts.append(super().training_step(model, {kind: part}))
                if self._measured_next is not None:
                    self._note_gradient(*self._measured_next)
        loss = torch.stack(parts).sum()
        # All processes must agree to give up, or some would wait for the others for ever.
        mean = loss if self.args.world_size == 1 else collectives.all_reduce_sum(loss) / collectives.world_size()
        if not torch.isfinite(mean):
            raise self._diverged(f"the loss is {float(mean)}")
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        self._before_step()
        return super()._clip_grad_norm(model)

    def _before_step(self) -> None:
        """The method sees the gradients of the whole step; a scaler's factor is taken out of them first."""
        if type(self.method).before_step is not Method.before_step:
            self.accelerator.unscale_gradients()
            self.method.before_step(self._network)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient's norm; a NaN or infinite one would corrupt the weights in the next step."""
        if grad_norm is None:
            # Without clipping this is the first that is called after the backward passes.
            self._before_step()
        norm = super()._get_grad_norm(model, grad_norm)
        # A scaler skips such steps by itself and tries a smaller scale.
        if self.accelerator.scaler is None and norm is not None and not math.isfinite(float(norm)):
            raise self._diverged(f"the gradient's norm is {float(norm)}")
        return norm

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"training, step {self.state.global_step + 1}: {what}; nothing was replaced. Lower learning_rate or look "
            "at the data of this step, remove the task's checkpoints and begin it again"
        )

    def _note_gradient(self, terms: dict[str, LossTerm], divisor: int) -> None:
        """The backward pass has left one term's gradient and nothing else."""
        self._measured_next = None
        ((name, term),) = terms.items()
        self.shares.note_gradient(name, term.weight, term.weight / divisor, self._trained)

    def _leaves_gradient_alone(self, terms: dict[str, LossTerm]) -> bool:
        """Whether the backward pass to come leaves one term's gradient and nothing else: then it need not run twice."""
        if collectives.world_size() > 1 and not self.accelerator.sync_gradients:
            return False
        alone = len(terms) == 1 and all(term.weight for term in terms.values()) and self.accelerator.scaler is None
        return alone and all(parameter.grad is None for parameter in self._trained)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the method's terms for a batch of one kind, divided by the accumulation steps."""
        ((kind, batch),) = inputs.items()
        due = bool(self.args.measure_every) and self.shares.due(kind)
        terms = (self._measured_terms if due else self._terms)(model, kind, batch)
        loss = torch.stack([term.weight * term.value for term in terms.values()]).sum()
        self._note(kind, terms, loss)
        loss = loss / self.current_gradient_accumulation_steps
        if due and self.accelerator.sync_gradients:
            average_next(model, loss)
        return loss

    def _terms(self, model: nn.Module, kind: str, batch: Any) -> dict[str, LossTerm]:
        terms = (self.method.replay_loss if kind == "replay" else self.method.new_task_loss)(model, batch)
        if self.args.world_size > 1:
            self._join(terms, batch)
        if kind == "new":
            terms["task"].weight *= self._token_factor(batch)
        elif self.replay_factor != 1:
            self._weigh_replay(terms)
        if any(term.grad_norm_share is not None for term in terms.values()):
            self._steer(terms)
        return terms

    def _weigh_replay(self, terms: dict[str, LossTerm]) -> None:
        for term in terms.values():
            term.weight *= 1 if term.of_weights else self.replay_factor

    def _measured_terms(self, model: nn.Module, kind: str, batch: Any) -> dict[str, LossTerm]:
        """The same, with each term's gradient measured."""

        def take(model: nn.Module = model) -> dict[str, LossTerm]:
            with alone(model):
                return self._terms(model, kind, batch)

        if self.is_deepspeed_enabled:
            # Its engine takes every backward pass after its own forward pass for the one that is followed by a step.
            self.shares.measure_apart(lambda: take(self._network), self._trained)
            return take()
        terms = take()
        if self._leaves_gradient_alone(terms):
            self._measured_next = (terms, self.current_gradient_accumulation_steps)
            return terms
        if self._may_add:
            self.shares.measure_and_add(terms, self._trained, 1 / self.current_gradient_accumulation_steps, self._steer)
            return terms
        self.shares.measure(terms, model, self._trained, take if self._serves_one_backward else None)
        terms = take() if self._serves_one_backward else terms
        self._steer(terms)
        return terms

    @property
    def _may_add(self) -> bool:
        """Whether what is measured of the terms may be added up, so that the step needs no further backward pass."""
        scaled, size = self.accelerator.scaler is not None, sum(one.nbytes for one in self._trained)
        return not (scaled or collectives.world_size() > 1 or self._serves_one_backward) and size <= ADDED_BYTES

    @property
    def _serves_one_backward(self) -> bool:
        """Whether a forward pass serves one backward pass only.

        A sharded model is gathered for one, and compiled graphs and Liger's kernels (SwiGLU) write gradients over what
        they had saved, the latter silently.
        """
        return self.is_fsdp_enabled or self.args.torch_compile or self.args.use_liger_kernel

    def _join(self, terms: dict[str, LossTerm], batch: Any) -> None:
        """Weighs this process's means by what they are means of, so that their average is the mean of the whole."""
        samples = len(batch["labels"])
        counts = [samples if term.count is None else term.count for term in terms.values()]
        own = torch.stack([torch.as_tensor(count, dtype=torch.float64, device="cpu") for count in counts])
        own *= not batch["filler"]
        factors = collectives.world_size() * own / collectives.all_reduce_sum(own).clamp(min=1)
        for term, factor in zip(terms.values(), factors.tolist()):
            term.value = term.value * (1.0 if term.of_weights else factor)

    def _token_factor(self, batch: Any) -> float:
        """What turns the mean over a batch's tokens into its part of the mean over the whole step's tokens."""
        if self.args.loss_average == "micro_batches" or not self._group_tokens:
            return 1.0
        return batch["tokens"] * self._group_new / self._group_tokens

    def _steer(self, terms: dict[str, LossTerm]) -> None:
        for name, term in terms.items():
            if term.grad_norm_share is None:
                continue
            if not self.args.method.steers:
                raise ConfigError(
                    f"method {self.method.name}: its term '{name}' has a grad_norm_share; give its Settings a property "
                    "'steers' that is True then"
                )
            weight = self.shares.weight_for(name, term.grad_norm_share)
            if weight is not None:
                term.weight = weight
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
            sums = [one.double() for one in self._sums.values()]
            summed = collectives.all_reduce_sum(torch.stack(sums)) if sums else torch.empty(0)
            means = (summed / collectives.world_size()).tolist()
            logs |= {f"loss_{name}": mean / self._counts[name] for name, mean in zip(self._sums, means)}
            logs |= {f"share_{name}": share for name, share in self.shares.shares().items()}
            logs |= {f"weight_{name}": weight for name, weight in self.weights.items()}
            logs |= self.reviews.log() if self.reviews else {}
            self._sums.clear()
            self._counts.clear()
        super().log(logs, start_time)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer asked for, with the former task's state if that is carried over."""
        with refused(self.args, "optim"):
            if self.args.optim == MUON:
                self.optimizer = make_muon(self.args, self._network, self.get_decay_parameter_names(self._network))
            optimizer = super().create_optimizer(*args, **kwargs)
        if self.carry is not None:
            self.carry.put_state(self._network, optimizer)
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """The scheduler; what accelerate has just done to the optimizer of a model sharded before is undone.

        It tells parameters apart by where their rows lie, which those without a row in this process do not.
        """
        if self._is_sharded_before:
            for group, parameters in zip(self.optimizer.param_groups, self._groups):  # type: ignore[union-attr]
                group["params"] = parameters
        with refused(self.args, "lr_scheduler_type"):
            return super().create_scheduler(*args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Counted on the parts; the Trainer would not find the tokens."""
        return sum(super(SeekrTrainer, self).floating_point_ops(part) for part in inputs.values())


class TellAfterStep(TrainerCallback):
    """Tells the method that a step has been made."""

    def __init__(self, method: Method, network: nn.Module) -> None:
        self._method, self._network = method, network

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Right after the optimizer, before the gradients are dropped."""
        self._method.after_step(self._network)
