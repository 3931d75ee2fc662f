"""What a sample's signals take, in the memory and on a device: one row, key and position through the real encoders.

Shapes: M heads of the chosen layers, R queries, L tokens, A answer positions, D head size, V vocabulary.
"""

from dataclasses import dataclass, fields, is_dataclass
from math import comb
from typing import Any

import torch
from torch import Tensor

from seekr_cl.attention.call import TILE_ELEMENTS
from seekr_cl.attention.stored import StoredDense, StoredFactors, StoredRows, StoredTopK, collate_rows
from seekr_cl.attention.stored.codec import encode_vectors, narrow_index
from seekr_cl.heads.selection import resolve_budget
from seekr_cl.memory import LogitSignal, ReplaySample
from seekr_cl.memory.sample_codec import pack
from seekr_cl.methods.base import Layout
from seekr_cl.methods.common.logit_distillation import LogitSettings, pad_logits
from seekr_cl.methods.derpp_mse import DERppMSESettings
from seekr_cl.methods.seekr.method import TARGETS
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings
from seekr_cl.planning.shape import LayerShape, ModelShape

_TILE_TENSORS = 6
"""Tensors of a tile's size that live at once in the divergence's backward: scores, log p, p, its pull, T, ds."""
_LOGIT_TENSORS = 3
"""Of the student's answer positions: logits, log-softmax, and that without the kept tokens."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The heads that budgets leave, spread evenly over the chosen layers.

    Attributes:
        layers: number of layers.
        heads: number of heads.
        groups: number of key/value heads that these use, on average over which heads they are.
        of_all: the same for all heads of all layers: heads, key/value heads.
        widest: heads in a layer.
        size: D.
        sinks: whether rows miss the mass of a sink.
    """

    layers: int
    heads: int
    groups: float
    of_all: tuple[int, int]
    widest: float
    size: int
    sinks: bool


@dataclass(frozen=True, slots=True)
class SampleCost:
    """Bytes of one sample.

    Attributes:
        ids: token ids.
        logits: teacher logits of the answer.
        attention: teacher attention rows.
        held: all heads' rows from before a task, in RAM while it is trained.
        step: what a sample adds on the device in a replay step, the tiles apart.
    """

    ids: int
    logits: int
    attention: int
    held: int
    step: int

    @property
    def stored(self) -> int:
        """In the memory."""
        return self.ids + self.logits + self.attention


def choose_heads(shape: ModelShape, settings: SeekrSettings) -> Chosen:
    """How many heads and layers the budgets leave."""
    every = list(shape.layers.values())
    total = sum(layer.heads for layer in every)
    layers, heads = len(every), total
    if settings.heads != "all":
        layers = resolve_budget("method.layer_budget", settings.layer_budget, len(every), lambda _: None)
        heads = resolve_budget("method.head_budget", settings.head_budget, total, lambda _: None)
        heads = min(heads, sum(sorted((layer.heads for layer in every), reverse=True)[:layers]))
    widest = heads / layers if layers else 0.0
    groups = layers * _used_groups(every[0], round(widest)) if heads else 0.0
    of_all = (total, sum(layer.kv_heads for layer in every))
    size, sinks = max(layer.size for layer in every), any(layer.sinks for layer in every)
    return Chosen(layers if heads else 0, heads, groups, of_all, widest, size, sinks)


def _used_groups(layer: LayerShape, heads: int) -> float:
    """Key/value heads that some of so many random heads use."""
    group = layer.heads // layer.kv_heads
    missed = comb(layer.heads - group, heads) / comb(layer.heads, heads) if heads <= layer.heads - group else 0.0
    return layer.kv_heads * (1 - missed)


def num_queries(settings: SeekrSettings, tokens: int, answer: int) -> int:
    """R for a sample of so many tokens, whose answer is the last ``answer`` of them."""
    budget = settings.query_budget
    if settings.query_replacement and isinstance(budget, int):
        return budget
    places = tokens
    if settings.query_positions == "answer":
        places = min(answer, tokens - 1) or tokens
    return resolve_budget("method.query_budget", budget, places, lambda _: None)


def sample_cost(shape: ModelShape, settings: Any, dtype: str, tokens: int, answer: int) -> SampleCost:
    """Bytes of one sample of so many tokens, whose answer is the last ``answer`` of them.

    Args:
        shape: the model.
        settings: the method's; those without logits or attention store none.
        dtype: ``signal_dtype``.
        tokens: L.
        answer: A.
    """
    sample = ReplaySample("", "", torch.zeros(tokens, dtype=torch.long), tokens - answer)
    ids = _size(pack([sample]))
    logits = attention = held = step = 0
    if isinstance(settings, LogitSettings):
        position_1, logits_1V = torch.zeros(1, dtype=torch.long), torch.zeros((1, shape.vocabulary))
        asked = settings.teacher == "adapter"
        top_k = None if asked else settings.logits_top_k
        signal = LogitSignal.encode(position_1, logits_1V, top_k, "float32" if asked else dtype)
        one = ReplaySample("", "", sample.ids_L, tokens - answer, {"logits": signal})
        logits = 0 if asked else answer * (_size(pack([one])) - ids)
        step += answer * _size(pad_logits([one], Layout(0), tokens))
        step += answer * _LOGIT_TENSORS * 4 * shape.vocabulary
    if isinstance(settings, DERppMSESettings):
        signal = LogitSignal.of_logits(torch.zeros(1, dtype=torch.long), torch.zeros((1, shape.vocabulary)), dtype)
        one = ReplaySample("", "", sample.ids_L, tokens - answer, {"logits": signal})
        logits = answer * (_size(pack([one])) - ids)
        step += answer * (1 + _LOGIT_TENSORS) * 4 * shape.vocabulary
    if isinstance(settings, SeekrSettings):
        chosen, rows = choose_heads(shape, settings), num_queries(settings, tokens, answer)
        if chosen.heads:
            positions = rows * torch.tensor([], dtype=torch.int32).element_size()
            attention = positions
            if settings.teacher == "stored":
                attention += rows_size(settings, dtype, chosen, chosen.heads, chosen.groups, rows, tokens)
                step += _teacher_size(settings, dtype, chosen, rows, tokens)
            else:
                step += _teacher_size(settings.replaced(attention_signal="dense"), "float32", chosen, rows, tokens)
        measured = tokens if settings.measure == "padded" and settings.query_budget is None else rows
        if settings.scores_heads:
            held = rows_size(settings, dtype, chosen, *chosen.of_all, measured, tokens, former=True)
    return SampleCost(ids, logits, attention, held, step)


def rows_size(
    settings: SeekrSettings,
    dtype: str,
    chosen: Chosen,
    heads: int,
    groups: float,
    rows: int,
    tokens: int,
    former: bool = False,
) -> int:
    """Bytes of stored rows, from one row and one key; ``former`` are those held while a task is trained."""
    vector, step = encode_vectors(torch.ones((1, chosen.size)), dtype)
    one = vector.nbytes + (0 if step is None else step.nbytes)
    if keeps_outputs(settings) and not former:
        return heads * rows * one
    if settings.attention_signal != "factors":
        return heads * rows * _probe(settings, dtype, chosen, tokens, former).num_bytes
    # Held rows lie apart for each layer, so that their group numbers are small.
    index = narrow_index(torch.zeros(1), 1 if former else round(groups)).nbytes
    return round(heads * (rows * one + index + 4 * chosen.sinks) + groups * tokens * one)


def keeps_outputs(settings: SeekrSettings) -> bool:
    """Whether heads' outputs are kept in place of their rows."""
    return TARGETS[settings.target][1] == "outputs"


def _probe(settings: SeekrSettings, dtype: str, chosen: Chosen, tokens: int, former: bool = False) -> StoredRows:
    """One row of one head as it is stored."""
    row_11L = torch.rand((1, 1, tokens), generator=torch.Generator().manual_seed(0)).softmax(-1)
    row_11L = row_11L * 0.5 if chosen.sinks else row_11L
    if settings.attention_signal == "dense":
        return StoredDense.encode(row_11L, dtype)
    return StoredTopK.encode(row_11L, settings.attention_top_k, dtype, "bucket" if former else settings.attention_tail)


def _teacher_size(settings: SeekrSettings, dtype: str, chosen: Chosen, rows: int, tokens: int) -> int:
    """Bytes of one sample's teacher rows in a batch, with their places and weights."""
    # For each (sample, head): its two places; for each row of it: its query and its weight.
    places = chosen.heads * (2 * 8 + rows * (8 + 4))
    if keeps_outputs(settings):
        return places + chosen.heads * rows * chosen.size * 4
    if settings.attention_signal != "factors":
        one = collate_rows([_probe(settings, dtype, chosen, tokens)], [0], 1, tokens)
        return places + chosen.heads * rows * _size(one)
    q_11D, k_1LD = torch.zeros((1, 1, chosen.size)), torch.zeros((1, tokens, chosen.size))
    sink_1 = torch.zeros(1) if chosen.sinks else None
    factors = StoredFactors(q_11D, k_1LD, torch.zeros(1, dtype=torch.uint8), sink_M=sink_1)
    both: Any = collate_rows([factors], [0], 1, tokens)
    of_head = both.group_P.nbytes + (both.sink_P.nbytes if chosen.sinks else 0)
    return round(places + chosen.heads * (rows * both.q_PRD.nbytes + of_head) + chosen.groups * both.k_GLD.nbytes)


def tiles_size(shape: ModelShape, settings: Any, batch: int, tokens: int, answer: int) -> int:
    """Bytes of the divergence's tiles in one layer, as PyTorch computes them; the Triton kernels need less."""
    if not isinstance(settings, SeekrSettings):
        return 0
    chosen = choose_heads(shape, settings)
    pair = (num_queries(settings, tokens, answer) + chosen.size) * tokens
    return round(_TILE_TENSORS * 4 * min(batch * chosen.widest * pair, max(TILE_ELEMENTS, pair)))


def _size(part: Any) -> int:
    """Bytes of all tensors in a mapping or dataclass."""
    if isinstance(part, Tensor):
        return part.nbytes
    if is_dataclass(part):
        return sum(_size(getattr(part, field.name)) for field in fields(part))
    return sum(map(_size, part.values())) if isinstance(part, dict) else 0
