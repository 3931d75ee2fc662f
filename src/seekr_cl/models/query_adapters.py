"""Models whose adapters are chosen by the query: PEFT's model, a module that chooses, and the file that says so.

Beside a PEFT adapter lie ``seekr_method.json``, which names the method and what its module is made of, and
``seekr_method.safetensors``, the module's weights. Names are looked up in a list of the library; nothing in a folder is
executed.

Shapes: B batch, L padded length, D the model's width.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from peft import PeftConfig, PeftModelForCausalLM
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seekr_cl.errors import ModelError
from seekr_cl.system import reading
from seekr_cl.system.files import write_json
from seekr_cl.tasks.collate import IGNORE

CONFIG, WEIGHTS = "seekr_method.json", "seekr_method.safetensors"
ADAPTER = "default"
"""PEFT's name of the only adapter."""
_LARGEST_CONFIG = 1 << 16


class QueryAdapterModel(PeftModelForCausalLM):
    """PEFT's model with a ``selector`` that weighs or picks its adapters by the query.

    ``forward`` takes, beside PEFT's arguments, ``query_mask`` [B, L]: which tokens are the query; all real ones
    where it is left out, as in generation.

    Attributes:
        method: name of the method it belongs to.
        selector: what chooses.
    """

    method: ClassVar[str]
    query_conditioned: ClassVar[bool] = True
    selector: nn.Module

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What ``restore`` needs besides the selector's weights, as JSON."""

    @abstractmethod
    def restore(self, content: dict[str, Any]) -> None:
        """Makes the selector that ``describe`` told of; its weights are loaded after that."""

    @classmethod
    def load(cls, base: Any, folder: Path) -> Self:
        """The model with the first adapter of a folder; the caller adds the others and then calls ``load_selector``.

        Args:
            base: the plain model.
            folder: where the adapter is.
        """
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = False
        with torch.random.fork_rng(devices=[]):
            found = cls(base, config)
        found.load_adapter(str(folder), "default", is_trainable=True, torch_device=str(found.device))
        return found

    def load_selector(self, folder: Path, content: dict[str, Any]) -> None:
        """Makes the selector and loads its weights."""
        self.restore(content)
        self.selector.load_state_dict(load_file(folder / WEIGHTS))
        self.selector.to(self.device)

    def save_selector(self, folder: Path) -> None:
        """Writes both files."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.selector.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        write_json(folder / CONFIG, {"method": self.method} | self.describe())

    @property
    def plain(self) -> Any:
        """The model without adapters."""
        return self.get_base_model()

    def embed(self, input_ids: Tensor) -> Tensor:
        """The frozen embeddings [B, L, D] of tokens, in single precision."""
        # For checkpointing PEFT has the embeddings ask for a gradient, even here.
        with torch.no_grad():
            return self.plain.get_input_embeddings()(input_ids).detach().float()


def query_tokens(input_ids: Tensor, attention_mask: Tensor | None, query_mask: Tensor | None) -> Tensor:
    """Which tokens [B, L] are the query: what was named, and all real ones of a row where nothing is."""
    real_BL = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
    if query_mask is None:
        return real_BL
    named_BL = query_mask.bool() & real_BL
    return torch.where(named_BL.any(1, keepdim=True), named_BL, real_BL)


def query_mask_of(batch: dict[str, Any]) -> Tensor:
    """The query's tokens [B, L] in a batch with ``labels``: those before the first that is to be learned.

    After it there may be padding and, in a conversation, what follows the end of the turn.
    """
    return (batch["labels"] != IGNORE).cumsum(1) == 0


def read_query_config(folder: Path) -> dict[str, Any] | None:
    """The content of ``seekr_method.json``; ``None`` where there is none.

    Raises:
        ModelError: if it is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ValueError("too large")
        content = reading.read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("method"), str):
            raise ValueError("names no method")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not a method's description ({error}); restore it from a copy") from error
    return content


def whole_number(content: dict[str, Any], key: str) -> int:
    """A number of at least 1 in ``seekr_method.json``.

    Raises:
        ValueError: if it is none.
    """
    value = content.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} is {value!r}, not a whole number of at least 1")
    return value
