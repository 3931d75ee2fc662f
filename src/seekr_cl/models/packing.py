"""Padding-free passes: a model's decoder runs on packed rows, and everybody outside sees the padded batch.

Hooks around the decoder pack what goes in and unpack what comes out, so labels, losses, logits and whatever else a
method does with a batch are those of rows that stand apart. Inside, positions begin anew with each row, from which
transformers makes a block-diagonal mask or flash attention's sequence lengths. Whether a model keeps rows apart that
way is found by trying (``require_apart``): recurrent and convolutional layers, positions that a model counts by itself
and masks that it makes without asking for positions do not.

Shapes: B rows, L padded length, S sequences, M their length.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from seekr_cl.attention.packing import OWNER, PackingPlan, plan_packing
from seekr_cl.distributed.dtensor import reshard
from seekr_cl.errors import ConfigError, ModelError, first_line
from seekr_cl.models.shared_lora import SharedLoraModel

_FIX = "set packing: false"
_SAME = {True: (1e-5, 1e-3), False: (2e-2, 1e-1)}
"""By whether weights are in full precision: how far, in relative norm, a token may be from itself beside other rows,
and from itself alone. The former is rounding, where a mixture of experts groups its tokens otherwise."""


class Packing:
    """Packs the batches of one model between ``attach`` and ``detach``.

    Args:
        model: with adapters or without, not yet wrapped by an engine.

    Attributes:
        plan: how the last batch was packed; ``None`` where it was left as it is. Layers that checkpointing runs again
            in the backward pass look here too.

    Raises:
        ConfigError: if the model has no decoder that can be told positions, or takes more than tokens.
    """

    def __init__(self, model: Any) -> None:
        self.plan: PackingPlan | None = None
        self.model = model
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        self.kind = f"a '{getattr(base.config, 'model_type', type(base).__name__)}' model"
        self.decoder: Any = base.get_decoder() if hasattr(base, "get_decoder") else base
        if self.decoder is base:
            raise ConfigError(f"packing: {self.kind} has no decoder apart from its head; {_FIX}")
        self._names = list(inspect.signature(self.decoder.forward).parameters)
        if "position_ids" not in self._names:
            raise ConfigError(
                f"packing: {self.kind} cannot be told where a row begins (it takes no position_ids); {_FIX}"
            )
        kernel = getattr(self.decoder.config, "_attn_implementation", None) or ""
        self._one_sequence = "flash" in kernel
        self._layers = [part for part in base.modules() if hasattr(part, "layer_idx")]
        self._keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
        self._handles: list[Any] = []
        self._tries = self._idles = False
        self._states: Any = None

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Copies and pickles of a model do not pack."""
        return _idle, ()

    def attach(self) -> None:
        """From here on batches are packed."""
        for layer in self._layers:
            setattr(layer, OWNER, self)
        self._handles = [
            self.decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            self.decoder.register_forward_hook(self._after, with_kwargs=True),
        ]

    def detach(self) -> None:
        """The model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for layer in self._layers:
            layer.__dict__.pop(OWNER, None)
        self.plan = None

    # Plans are made of numbers read from a mask, which no graph can hold.
    @torch._dynamo.disable
    def _before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if not self._handles:
            return None
        self.plan = plan = None
        if not (module.training or self._tries):
            # Whoever looks at the model in between, generates with it or scores, does so as ever.
            return None
        given = dict(zip(self._names, args)) | kwargs
        if given.get("past_key_values") is not None:
            raise ModelError(f"packing: {self.kind} goes on from a cache, such as prefix tuning makes; {_FIX}")
        mask_BL = given.get("attention_mask")
        if not self._idles and isinstance(mask_BL, Tensor) and mask_BL.dim() == 2:
            self.plan = plan = plan_packing(mask_BL, self._one_sequence)
        if plan is None:
            return None
        given |= {"attention_mask": None, "position_ids": None}
        for name, value in given.items():
            if isinstance(value, Tensor):
                if value.shape[:2] != plan.padded:
                    raise ModelError(f"packing: {self.kind} takes {name} of shape {tuple(value.shape)}; {_FIX}")
                given[name] = plan.pack(value)
        return (), given | {"position_ids": plan.position_SM, "use_cache": False}

    @torch._dynamo.disable
    def _after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if self.plan is not None:
            output = self._unpacked(self.plan, output)
        if self._tries:
            self._states = output[0]
        return output

    @contextmanager
    def trying(self) -> Iterator[None]:
        """For ``states``, under which all rows of a batch share one sequence; and nothing is dropped out."""
        training, one_sequence = self.model.training, self._one_sequence
        self.model.eval()
        self._tries = self._one_sequence = True
        try:
            yield
        finally:
            self._tries, self._one_sequence, self._states = False, one_sequence, None
            self.model.train(training)
            reshard(self.model)

    def states(self, rows: Sequence[Sequence[int]], apart: bool = False) -> list[Tensor]:
        """The decoder's last states [length, D] of each row; ``apart`` leaves the batch padded."""
        # With a column to spare, or rows of one length would not be packed.
        device, width = next(self.decoder.parameters()).device, max(map(len, rows)) + 1
        ids_BL = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        mask_BL = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        # The whole model and not its decoder alone, which an engine need not know as a model.
        more = {"logits_to_keep": 1} if self._keeps else {}
        self._idles = apart
        self.model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False, **more)
        self._idles = False
        # Before them there may be those of a prompt.
        return [states_LD[: len(row)] for states_LD, row in zip(self._states[:, -width:], rows)]

    def _unpacked(self, plan: PackingPlan, output: Any) -> Any:
        if isinstance(output, Tensor):
            return plan.unpack(output) if output.shape[:2] == plan.packed else output
        if isinstance(output, tuple):
            return tuple(self._unpacked(plan, one) for one in output)
        if output.get("attentions") is not None:
            raise ModelError(f"packing: attention maps of packed rows are not those of rows alone; {_FIX}")
        for name in ("last_hidden_state", "hidden_states"):
            if output.get(name) is not None:
                output[name] = self._unpacked(plan, output[name])
        return output


def _idle() -> Packing:
    """What stands in a copied model for the packing of the one it was copied from."""
    packing = Packing.__new__(Packing)
    packing.plan, packing._handles, packing._tries = None, [], False
    return packing


@contextmanager
def packed(model: Any, rows: Sequence[Sequence[int]]) -> Iterator[None]:
    """Packs the model's training batches inside the block.

    Args:
        model: in training; not yet wrapped by an engine.
        rows: token ids of rows to come, to try it with.

    Raises:
        ConfigError: if the model does not keep packed rows apart, or treats each in a way of its own.
    """
    if isinstance(model, SharedLoraModel):
        raise ConfigError(f"packing: the model mixes its adapters for each row of a batch; {_FIX}")
    packing = Packing(model)
    packing.attach()
    try:
        require_apart(packing, rows)
        yield
    finally:
        packing.detach()


@torch.no_grad()
def require_apart(packing: Packing, rows: Sequence[Sequence[int]]) -> None:
    """Makes sure that no row sees another one, and that each is what it would be alone.

    A short, the longest and a short row are run apart and in one sequence, and once more with other tokens in the first
    two, which must leave the third one as it was.

    Raises:
        ConfigError: if they do, or the model cannot run so.
    """
    ordered = sorted(rows, key=len)
    tried = [ordered[len(ordered) // 2], ordered[-1], ordered[len(ordered) // 4]]
    vocabulary = packing.decoder.get_input_embeddings().num_embeddings
    others = [[(token + 1) % vocabulary for token in row] for row in tried[:2]] + [tried[2]]
    try:
        with packing.trying():
            alone = [packing.states([row])[0] for row in tried]
            padded = packing.states(tried, apart=True)
            together, beside = packing.states(tried), packing.states(others)
            if packing.plan is None:
                raise ConfigError(f"packing: {packing.kind} was given no mask to find rows by; {_FIX}")
    except (ModelError, ConfigError):
        raise
    except Exception as error:  # of a call that it was not made for a model raises what it likes
        raise ConfigError(f"packing: {packing.kind} cannot run packed rows ({first_line(error)}); {_FIX}") from error
    beside_most, alone_most = _SAME[together[0].dtype in (torch.float32, torch.float64)]
    # Rotary embeddings may be scaled by the longest row of a batch; and padding has made a nan of some attention.
    apart = min(_distance(alone, together), _distance(padded, together))
    if not (_distance(beside[2:], together[2:]) <= beside_most and apart <= alone_most):
        raise ConfigError(
            f"packing: rows of {packing.kind} in one sequence are not what they are alone (recurrent layers, or "
            f"positions or masks that do not begin anew with a row); {_FIX}"
        )


def _distance(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest distance of a token's state from another one of it, relative to its norm; infinite for nan."""
    one_ND, other_ND = torch.cat(list(ones)).double(), torch.cat(list(others)).double()
    distance_N = (one_ND - other_ND).norm(dim=-1) / one_ND.norm(dim=-1).clamp_min(1e-12)
    return float(distance_N.nan_to_num(math.inf).max())
