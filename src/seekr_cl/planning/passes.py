"""How long looking at samples takes, in passes: one example forward and backward, as in training.

Products of matrices are counted in FLOPs, as PyTorch's counter counts them. What is computed number by number is taken
as the FLOPs that pass in its time; where a model is large these hardly weigh.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from seekr_cl.attention.sensitivity import CHUNK
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.methods.common.logit_distillation import LogitSettings
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings
from seekr_cl.planning.overheads import FORWARD, FORWARD_FROZEN
from seekr_cl.planning.shape import LayerShape, ModelShape
from seekr_cl.planning.signal_costs import num_queries
from seekr_cl.planning.workload import Workload
from seekr_cl.replay.selection import BY_MODEL

_ELEMENT = 150
"""FLOPs in the time of one number that is read, changed and written: 1 to 2 ns where a core does 84 GFLOP/s (measured
in models so small that it shows)."""
_ELEMENTS = (32, 48)
"""Numbers so written in a layer for each component of a token, forward and backward (counted in a Llama)."""
_ENTRY = (1700, 3700)
"""FLOPs in the time of one entry of one row, before and after a task: 20 and 44 ns on that core (measured)."""


@dataclass(frozen=True, slots=True)
class Work:
    """Work on one example, in FLOPs.

    Attributes:
        products: of matrices.
        rest: everything else, in the FLOPs that its time would do.
    """

    products: float
    rest: float

    @property
    def total(self) -> float:
        """Both."""
        return self.products + self.rest


def training_work(shape: ModelShape, tokens: int, frozen: bool) -> Work:
    """A pass: one example forward and backward.

    Args:
        shape: the model.
        tokens: L.
        frozen: whether the model's own weights are, so that no gradient of theirs is computed.
    """
    layers, head = _products(shape)
    products = (2 if frozen else 3) * tokens * (layers + head) + _attention(shape.layers.values(), tokens, 6)
    return Work(products, _elements(shape, tokens, 0) + _elements(shape, tokens, 1))


def scoring_work(shape: ModelShape, settings: SeekrSettings, tokens: int, answer: int, frozen: bool) -> Work:
    """What SEEKR does with one kept sample: forward before its task, forward and backward after it.

    All heads' rows are computed in both passes. The second has no gradients of weights unless ``gradient_leak`` wants
    them; dL/dO is all that it is run for. Heads that are not chosen by score take one forward pass.

    Args:
        shape: the model.
        settings: SEEKR's.
        tokens: L.
        answer: A.
        frozen: as above.
    """
    padded = settings.measure == "padded"
    rows = tokens if padded and settings.query_budget is None else num_queries(settings, tokens, answer)
    layers, head = _products(shape)
    backward = 2 if settings.gradient_leak and not frozen else 1
    places = 1, min(answer + 1, tokens)
    if not settings.scores_heads:
        products = tokens * layers + places[1] * head + _attention(shape.layers.values(), tokens, 2)
        products += sum(2 * layer.heads * layer.size * rows * tokens for layer in shape.layers.values())
        return Work(products, _elements(shape, tokens, 0) + _ENTRY[1] * sum(shape.heads.values()) * rows * tokens)
    products = (2 + backward) * tokens * layers + (places[0] + (1 + backward) * places[1]) * head
    every = list(shape.layers.values())
    # Where no weight wants its gradient, the backward pass ends at the output of the first layer's attention.
    products += _attention(every, tokens, 4) + _attention(every[2 - backward :], tokens, 4)
    # Within a chunk the sensitivity is that of dO V^T itself; elsewhere dO^T dO and V^T V do.
    whole, part = divmod(tokens, CHUNK)
    within = 0 if padded else whole * CHUNK**2 + part**2
    for layer in every:
        products += 2 * layer.heads * layer.size * (2 * rows * tokens + within)
        products += 2 * tokens * layer.size**2 * (layer.heads + layer.kv_heads)
    rest = 2 * _elements(shape, tokens, 0) + _elements(shape, tokens, 1)
    return Work(products, rest + sum(_ENTRY) * sum(shape.heads.values()) * rows * tokens)


def looking_passes(
    shape: ModelShape, config: SeekrConfig, work: Workload, kept: list[int], replayed: int, frozen: bool
) -> float:
    """Passes beside training and replay in which a model looks at samples, in all tasks.

    Kept samples are scored or asked for their logits, choices look at every example, and ``teacher: adapter`` asks the
    earlier model in every replay step.

    Args:
        shape: the model.
        config: all settings.
        work: what is learned.
        kept: samples kept of each task.
        replayed: passes over replay samples.
        frozen: whether the model's own weights are.
    """
    forward = FORWARD_FROZEN if frozen else FORWARD
    found = sum(kept) * sample_passes(shape, config.method.settings, work, frozen)
    if config.method.kind.keeps and config.replay.choice in BY_MODEL:
        found += forward * sum(examples for examples, count in zip(work.examples, kept) if count)
    if asks_adapters(config.method.settings):
        found += forward * replayed
    return found


def sample_passes(shape: ModelShape, settings: Any, work: Workload, frozen: bool) -> float:
    """Passes in which one kept sample is scored, or asked for its logits alone."""
    if isinstance(settings, SeekrSettings):
        scoring = scoring_work(shape, settings, work.tokens, work.answer, frozen)
        return scoring.total / training_work(shape, work.tokens, frozen).total
    taken = isinstance(settings, LogitSettings) and not asks_adapters(settings)
    return (FORWARD_FROZEN if frozen else FORWARD) if taken else 0.0


def asks_adapters(settings: Any) -> bool:
    """Whether the earlier models are asked through their adapters, so that nothing of them is stored."""
    return isinstance(settings, LogitSettings) and settings.teacher == "adapter"


def _products(shape: ModelShape) -> tuple[float, float]:
    """FLOPs of one token forward in the layers, and in the product with the vocabulary; all experts are counted."""
    text = shape.config.get_text_config() if shape.config is not None else None
    vocabulary = shape.vocabulary * shape.hidden
    embeddings = vocabulary * (1 if getattr(text, "tie_word_embeddings", False) else 2)
    return 2.0 * max(shape.parameters - embeddings, 0), 2.0 * vocabulary


def _attention(layers: Iterable[LayerShape], tokens: int, products: int) -> float:
    """Two products in a forward pass, four in a backward pass, over all L x L entries."""
    return sum(2.0 * products * one.heads * one.size * tokens**2 for one in layers)


def _elements(shape: ModelShape, tokens: int, way: int) -> float:
    return float(_ELEMENT * _ELEMENTS[way] * len(shape.layers) * tokens * shape.hidden)
