"""How a Trainer's state gets into a checkpoint and out of it again, in files that cannot run code when read."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from seekr_cl.config.average import AverageSettings
from seekr_cl.distributed import collectives
from seekr_cl.distributed.engines import keeps_shards, require_dtypes
from seekr_cl.errors import ConfigError
from seekr_cl.replay.forgetting_curve import Reviews
from seekr_cl.training import deepspeed as zero
from seekr_cl.training.averaging import Averaging
from seekr_cl.training.checkpoint import Checkpoint
from seekr_cl.training.gradient_shares import GradientShares
from seekr_cl.training.optimizer_carryover import OptimizerCarryover
from seekr_cl.training.trainer_state import (
    put_optimizer,
    put_rng_of_all,
    put_weights,
    rng_of_all,
    take_optimizer,
    take_weights,
)

Parts = dict[str, dict[str, Tensor]]
SaveState = Callable[[dict[str, Any], Parts, dict[str, str], bool, Parts], None]
"""Writes a checkpoint's JSON, tensors (shards as they are or put together), further texts, pieces."""


class ResumableTrainer(Trainer):
    """The Trainer's resuming with its loading and saving replaced; ``SeekrTrainer`` adds the step.

    Attributes:
        shares: gradient norms of the loss terms.
        weights: term weights that replaced the method's own because it asked for a share.
        reviews: replay that comes by a clock of its own.
        review_steps: optimizer steps that were made for it.
        carry: optimizer state and gradients from the former task.
        averaging: of the weights, if it is asked for.
    """

    shares: GradientShares
    weights: dict[str, float]
    reviews: Reviews | None
    review_steps: int
    carry: OptimizerCarryover | None
    averaging: Averaging | None = None
    _network: nn.Module
    _dtypes: dict[str, torch.dtype]
    _sums: dict[str, Tensor]
    _counts: dict[str, int]
    _save_state: SaveState | None
    _begun: Checkpoint | None

    def average(self, settings: AverageSettings) -> None:
        """Has the weights averaged; to be asked before training, with the weights from before the task.

        Raises:
            ConfigError: if an engine holds them in pieces.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            engine = "FSDP" if self.is_fsdp_enabled else "DeepSpeed"
            raise ConfigError(f"{engine}: average does not support sharded weights; use DDP, or remove it")
        self.averaging = Averaging(settings, self._network)
        self.add_callback(self.averaging)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains; from the checkpoint given at the beginning, if one was."""
        if self._begun is not None:
            kwargs["resume_from_checkpoint"] = str(self._begun.path)
        return super().train(*args, **kwargs)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """The Trainer would look for DeepSpeed's own checkpoint, which can run code when it is read."""
        if not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_from_checkpoint(resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's own would write files that can run code when they are read."""
        assert self._save_state is not None
        rng, rng_content = rng_of_all()
        optimizer, optimizer_content, pieces = self._take_optimizer()
        scaler = self.accelerator.scaler
        content = {
            "rng": rng_content,
            "optimizer": optimizer_content,
            "scheduler": self.lr_scheduler.state_dict(),  # type: ignore[union-attr]
            "scaler": None if scaler is None else scaler.state_dict(),
            "shares": self.shares.state(),
            "weights": self.weights,
            "counts": self._counts,
            "flos": self.current_flos,
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "reviews": self.reviews.state() if self.reviews else None,
            "review_steps": self.review_steps,
        }
        sums = {f"sum/{name}": total for name, total in self._sums.items()} | {"loss": self._tr_loss}
        # Of what each process has summed up, process 0 keeps the sum, the others nothing.
        sums = {name: collectives.all_reduce_sum(one) for name, one in sums.items()}
        parts = {"weights": take_weights(self._network), "optimizer": optimizer, "rng": rng, "trainer": sums}
        if self.averaging is not None:
            parts["average"] = self.averaging.state()
        state = json.dumps(dataclasses.asdict(self.state))
        self._save_state(content, parts, {TRAINER_STATE_NAME: state}, keeps_shards(self), pieces)

    def _take_optimizer(self) -> tuple[dict[str, Tensor], Any, dict[str, dict[str, Tensor]]]:
        """Its state's tensors, its JSON, and what can only be had in pieces, which is all of it under ZeRO."""
        if self.is_deepspeed_enabled:
            pieces, content = zero.take_optimizer(self)
            return {}, collectives.all_gather_object(content), {"optimizer": pieces}
        return *take_optimizer(self.optimizer, self._network), {}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        put_weights(self._network, self._saved().tensors("weights"), self._saved().own_pieces("weights"))
        if self.averaging is not None:
            self.averaging.load_state(self._saved().tensors("average"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = self._saved()
        content, whole, pieces = saved.state["trainer"], saved.tensors("optimizer"), saved.own_pieces("optimizer")
        if self.is_deepspeed_enabled:
            zero.put_optimizer(self, pieces, content["optimizer"][collectives.rank()])
        else:
            put_optimizer(self.optimizer, self._network, whole, content["optimizer"], pieces)
        self.lr_scheduler.load_state_dict(content["scheduler"])  # type: ignore[union-attr]
        # What it carried over was used up in the first step.
        self.carry = None

    def _load_scaler(self, checkpoint: str | None) -> None:
        state = None if checkpoint is None else self._saved().state["trainer"]["scaler"]
        if state is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            put_rng_of_all(self._saved().tensors("rng"), self._saved().state["trainer"]["rng"])

    def check_dtypes(self) -> None:
        """Refuses weights that an engine has made another type; they would be written so."""
        require_dtypes(self._network, self._dtypes, "DeepSpeed" if self.is_deepspeed_enabled else "FSDP")

    def load_sums(self) -> None:
        """Takes the averages that were being formed, after the Trainer has set its own to zero."""
        if self._begun is None:
            return
        content, tensors = self._saved().state["trainer"], self._saved().tensors("trainer")
        self.shares.load_state(content["shares"])
        self.weights = dict(content["weights"])
        if self.reviews is not None:
            self.reviews.load_state(content["reviews"])
        # Checkpoints of former versions have none.
        self.review_steps = content.get("review_steps", 0)
        self._counts.update(content["counts"])
        device = self.args.device
        tensors = {
            name: t.to(device) if collectives.is_main() else torch.zeros_like(t, device=device)
            for name, t in tensors.items()
        }
        self._sums = {name.removeprefix("sum/"): t for name, t in tensors.items() if name != "loss"}
        self._tr_loss = tensors["loss"]
        self.current_flos = content["flos"]
        self._total_loss_scalar, self._globalstep_last_logged = content["total_loss"], content["last_logged"]
        # The mean loss in the last line of the log is over the whole task.
        self._initial_global_step = 0
        # With no step left to come the Trainer would not set the generators.
        self._load_rng_state(str(self._begun.path))

    def _saved(self) -> Checkpoint:
        assert self._begun is not None
        return self._begun
