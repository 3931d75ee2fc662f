"""What a method needs beside the model, its optimizer and the samples: a function for each, and an entry in ``COSTS``.

A method that is not in ``COSTS``, such as one of your own, counts as its base class there, or as needing nothing, which
the plan says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from seekr_cl.methods import Method
from seekr_cl.methods.agem import AGEMSettings
from seekr_cl.methods.common.lora import AdapterSettings, attach, lora_layers
from seekr_cl.methods.derpp_mse import DERppMSESettings
from seekr_cl.methods.ewc import EWCSettings
from seekr_cl.methods.gem import GEMSettings
from seekr_cl.methods.icarl import ICaRLSettings
from seekr_cl.methods.inflora import InfLoRASettings, adapter_downs
from seekr_cl.methods.l2p import L2PSettings
from seekr_cl.methods.lfpt5 import TRIES, LFPT5Settings
from seekr_cl.methods.lwf import LwFSettings
from seekr_cl.methods.ogd import OGDSettings
from seekr_cl.methods.olora import OLoraSettings
from seekr_cl.methods.onpolicy_replay import ROOM, OnPolicySettings, best_count
from seekr_cl.methods.osft import OSFTSettings, decomposed
from seekr_cl.methods.progressive_prompts import ProgressivePromptsSettings
from seekr_cl.methods.rwalk import KINDS, RWalkSettings
from seekr_cl.methods.sapt import SAPTSettings
from seekr_cl.methods.sdft import ROOM as SDFT_ROOM
from seekr_cl.methods.sdft import SDFTSettings
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings
from seekr_cl.methods.tree_lora import TreeLoraSettings
from seekr_cl.models.query_adapters import ADAPTER

FLOAT = 4
"""Bytes of a float32 number, in which methods keep what they know of weights."""
FORWARD, FORWARD_FROZEN = 1 / 3, 1 / 2
"""Of a pass forward and backward, what a pass forward takes: all weights trained; the model's frozen, whose gradients
are not computed."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a method's costs grow with.

    Attributes:
        weights: numbers that are trained.
        width: bytes of one of them.
        hidden: components of a token's embedding.
        examples: training examples of each task, in order.
        kept: samples that the memory keeps of each.
        steps: optimizer steps of each, those of replay apart.
        trained: passes over the examples of each.
        replayed: passes over replayed samples, in all tasks.
        tokens: of an example.
        answer: tokens of it that are to be answered.
        context: longest sequence of the model, if its config says so.
        forward: of a pass forward and backward, what a pass forward takes.
        outputs: bytes of one sample's outputs over the whole vocabulary, as signals are kept.
        build: makes the model without storage.
        heads: attention heads that are chosen for a task.
        size: components of a head's output.
    """

    weights: int
    width: int
    hidden: int
    examples: Sequence[int]
    kept: Sequence[int]
    steps: Sequence[int]
    trained: Sequence[int]
    replayed: int
    tokens: int
    answer: int
    context: int | None
    forward: float
    outputs: int
    build: Callable[[], Any]
    heads: int = 0
    size: int = 0

    @property
    def number(self) -> int:
        """How many tasks there are."""
        return len(self.examples)

    @property
    def later(self) -> bool:
        """Whether a task comes after the first."""
        return self.number > 1


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a method needs.

    Attributes:
        device: bytes on the device, at most, in a step of the last task; a task's end may take more for a moment.
        ram: bytes in RAM meanwhile; on a CPU what is on the device too is there once.
        carried: bytes that the memory carries beside samples after the last task.
        written: bytes of the adapter that is written after the last task in place of a model.
        virtual: tokens that stand before every example of the last task.
        passes: of an example, forward and backward, in all tasks, beside those of new examples, replay and scoring.
        texts: at most, that the model writes in all tasks.
        positions: tokens that go forward for these at most, prompts among them; not in ``passes``.
    """

    device: int = 0
    ram: int = 0
    carried: int = 0
    written: int = 0
    virtual: int = 0
    passes: float = 0.0
    texts: int = 0
    positions: int = 0


def _nothing(settings: Any, scale: Scale) -> Overhead:
    return Overhead()


def _all_kept(settings: Any, kept: Sequence[int], examples: int) -> int:
    return sum(kept)


@dataclass(frozen=True, slots=True)
class MethodCosts:
    """What a plan asks of a method.

    Attributes:
        overhead: from its settings and what they grow with, what it needs.
        replayed: from its settings, the samples kept of each old task and the new task's examples, how many samples
            one round of replay has.
        replay_runs_model: whether a replayed sample goes through the model, which takes time.
    """

    overhead: Callable[[Any, Scale], Overhead] = _nothing
    replayed: Callable[[Any, Sequence[int], int], int] = _all_kept
    replay_runs_model: bool = True


def costs_of(method: type[Method]) -> MethodCosts | None:
    """A method's entry, or that of the nearest base class that has one; ``None`` if nobody has said what it needs."""
    names = [vars(kind).get("name") for kind in method.__mro__]
    return next((COSTS[name] for name in names if name in COSTS), None)


def lora_bytes(build: Callable[[], Any], settings: AdapterSettings) -> tuple[int, int, int]:
    """What one adapter takes on a model: bytes in all, bytes of its down-projections, adapted layers.

    Args:
        build: makes the model without storage.
        settings: the adapter's.
    """
    model = build()
    base = num_bytes(model)
    wrapped = attach(model, settings.lora(), seed=0)
    down = [FLOAT * layer.lora_A[ADAPTER].weight.numel() for _, layer in lora_layers(wrapped)]  # type: ignore[operator]
    return num_bytes(wrapped) - base, sum(down), len(down)


def written_positions(scale: Scale, prompt: int, new: int) -> int:
    """Tokens that go forward, with a cache, for a text of at most so many new ones: the last of them no longer does."""
    room = new if scale.context is None else min(new, scale.context - prompt)
    return prompt + room - 1 if room > 0 else 0


def num_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def _seekr(settings: SeekrSettings, scale: Scale) -> Overhead:
    """BFP's matrices with momentum and gradient, for each chosen head of each old task."""
    old = sum(bool(kept) for kept in scale.kept[:-1]) if settings.projection != "none" else 0
    return Overhead(device=3 * FLOAT * old * scale.heads * scale.size**2)


def _derpp_mse(settings: DERppMSESettings, scale: Scale) -> Overhead:
    """The second draw goes through the model too, and the new task's logits are held while it is learned."""
    vocabulary = scale.build().get_output_embeddings().weight.shape[0]
    held = FLOAT * vocabulary * scale.answer * scale.kept[-1]
    return Overhead(ram=held, passes=scale.replayed if settings.alpha and settings.beta else 0)


def _ewc(settings: EWCSettings, scale: Scale) -> Overhead:
    """Two numbers a trained weight, and the examples of the Fisher information."""
    state = 2 * FLOAT * scale.weights
    held = state if scale.later else 0
    passes = sum(min(settings.fisher_samples, count) for count in scale.examples)
    return Overhead(device=held, ram=held, carried=state, passes=passes)


def _lwf(settings: LwFSettings, scale: Scale) -> Overhead:
    """A copy of the trained weights, and its forward pass over every example."""
    return Overhead(device=scale.width * scale.weights, passes=scale.forward * sum(scale.trained))


def _agem(settings: AGEMSettings, scale: Scale) -> Overhead:
    """One gradient, and a pass over the drawn samples in every step."""
    counts = [min(sum(scale.kept[:number]), settings.reference_samples) for number in range(scale.number)]
    passes = sum(steps * count for steps, count in zip(scale.steps, counts))
    return Overhead(device=FLOAT * scale.weights if counts[-1] else 0, passes=passes)


def _gem(settings: GEMSettings, scale: Scale) -> Overhead:
    """A gradient of every old task, and a pass over its samples in every step."""
    counts = [min(kept, settings.reference_samples or kept) for kept in scale.kept]
    gradients = sum(map(bool, counts[:-1]))
    passes = sum(steps * sum(counts[:number]) for number, steps in enumerate(scale.steps))
    return Overhead(device=gradients * FLOAT * scale.weights, passes=passes)


def _ogd(settings: OGDSettings, scale: Scale) -> Overhead:
    """As many directions as examples they come from; those that lie in the others' span are left out."""
    counts = [min(settings.directions, count) for count in scale.examples]
    one = FLOAT * scale.weights
    held = sum(counts[:-1]) * one
    return Overhead(device=held, ram=held, carried=sum(counts) * one, passes=sum(counts))


def _rwalk(settings: RWalkSettings, scale: Scale) -> Overhead:
    """Three numbers a trained weight; with running sums and a step's own eleven, seven in the first task."""
    one = FLOAT * scale.weights
    device = (11 if scale.later else 7) * one
    return Overhead(device=device, ram=len(KINDS) * one if scale.later else 0, carried=len(KINDS) * one)


def _olora(settings: OLoraSettings, scale: Scale) -> Overhead:
    """The adapter, and the down-projections of those before it."""
    adapter, down, _ = lora_bytes(scale.build, settings)
    earlier = (scale.number - 1) * down
    return Overhead(device=adapter + earlier, ram=earlier, carried=scale.number * down)


def _osft(settings: OSFTSettings, scale: Scale) -> Overhead:
    """The parts of the decomposed weights; the weights themselves stay beside them."""
    model = scale.build()
    base = num_bytes(model)
    return Overhead(device=num_bytes(decomposed(model, settings, seed=0)) - base)


def _progressive_prompts(settings: ProgressivePromptsSettings, scale: Scale) -> Overhead:
    """All tasks' prompts, the network of the last, and the room that they take before every example."""
    tokens = settings.prompt_length * scale.number
    prompts = FLOAT * scale.hidden * tokens
    width = settings.bottleneck
    network = FLOAT * (2 * scale.hidden * width + width + scale.hidden) if width else 0
    seen = sum(count * settings.prompt_length * number for number, count in enumerate(scale.trained, start=1))
    return Overhead(device=prompts + network, written=prompts, virtual=tokens, passes=seen / scale.tokens)


def _l2p(settings: L2PSettings, scale: Scale) -> Overhead:
    """The pool with its keys, the room that picked prompts take, and the pass that asks for hidden states."""
    held = FLOAT * scale.hidden * settings.pool_size * (settings.prompt_length + 1)
    virtual = settings.top * settings.prompt_length
    asked = scale.forward if settings.query == "hidden" else 0.0
    passes = sum(scale.trained) * (virtual / scale.tokens + asked)
    return Overhead(device=held, written=held, virtual=virtual, passes=passes)


def _sapt(settings: SAPTSettings, scale: Scale) -> Overhead:
    """An adapter and a key a task, the layers that make queries, each task's mean attention if samples are kept."""
    adapter, _, _ = lora_bytes(scale.build, settings)
    number, width = scale.number, scale.hidden
    selector = FLOAT * width * (2 * settings.query_size + 2 + number)
    # Of task k there were k adapters to attend to.
    rows = [FLOAT * place for place, kept in enumerate(scale.kept, start=1) if kept]
    earlier = [FLOAT * place for place, kept in enumerate(scale.kept[:-1], start=1) if kept]
    held = number * adapter + selector
    return Overhead(device=held, ram=sum(earlier), carried=sum(rows), written=held)


def _tree_lora(settings: TreeLoraSettings, scale: Scale) -> Overhead:
    """The adapter, the means of its down-projections in every task, and what is known of their distances."""
    adapter, down, layers = lora_bytes(scale.build, settings)
    earlier = scale.number - 1
    # A distance and a count for each layer and earlier task, in double precision.
    tables = 2 * torch.finfo(torch.float64).bits // 8 * layers
    return Overhead(
        device=adapter + scale.number * down,
        ram=earlier * (down + tables),
        carried=scale.number * down,
        written=adapter,
    )


def _slao(settings: AdapterSettings, scale: Scale) -> Overhead:
    """The adapter, and beside it the up-projections: merged so far, and as the task before left them."""
    adapter, down, _ = lora_bytes(scale.build, settings)
    up = adapter - down
    return Overhead(device=adapter + up, ram=up if scale.later else 0, carried=up, written=adapter)


def _inflora(settings: InfLoRASettings, scale: Scale) -> Overhead:
    """The adapter, at most all directions of each adapted layer's inputs, and two passes forward to look at these."""
    adapter, _, _ = lora_bytes(scale.build, settings)
    sizes = [down.shape[1] for down in adapter_downs(attach(scale.build(), settings.lora(), seed=0)).values()]
    carried = FLOAT * sum(size**2 for size in sizes)
    looked_at = 2 * sum(min(settings.input_samples, count) for count in scale.examples)
    return Overhead(
        device=adapter, ram=carried if scale.later else 0, carried=carried, passes=scale.forward * looked_at
    )


def _icarl(settings: ICaRLSettings, scale: Scale) -> Overhead:
    """From the first task with exemplars behind it: a copy of the trained weights and its forward passes."""
    if not (settings.distillation and any(scale.kept[:-1])):
        return Overhead()
    new = sum(scale.trained[1:]) if settings.new_examples else 0
    return Overhead(device=scale.width * scale.weights, passes=scale.forward * (new + scale.replayed))


def _replayed_lfpt5(settings: LFPT5Settings, kept: Sequence[int], examples: int) -> int:
    """If enough of what the model writes can be read."""
    return sum(kept) + (round(settings.pseudo_ratio * examples) if kept else 0)


def _lfpt5(settings: LFPT5Settings, scale: Scale) -> Overhead:
    """A pass more over every text, the texts written, as long as examples, and their outputs over the vocabulary.

    The prefix and the separator in a text are left out: nobody has said into how many tokens they go.
    """
    later = range(1, scale.number)
    replayed = [_replayed_lfpt5(settings, scale.kept[:n], scale.examples[n]) for n in later]
    texts = TRIES * sum(_replayed_lfpt5(settings, [0], scale.examples[n]) for n in later)
    asked = sum(replayed) if settings.consistency else 0
    return Overhead(
        ram=replayed[-1] * scale.outputs if asked else 0,
        passes=sum(scale.trained) + scale.replayed + scale.forward * asked,
        texts=texts,
        positions=texts * scale.tokens,
    )


def _replayed_onpolicy_replay(settings: OnPolicySettings, kept: Sequence[int], examples: int) -> int:
    """If the model ends enough of its answers."""
    if settings.loss == "kl":
        return sum(kept)
    return sum(best_count(settings.keep, asked) for asked in kept)


def _onpolicy_replay(settings: OnPolicySettings, scale: Scale) -> Overhead:
    """Before each task an answer to every kept prompt; confidence takes a pass forward over each.

    With ``loss: kl`` an answer to every replayed prompt, the earlier model's pass over it, and its copy.
    """
    if settings.loss == "kl":
        positions = scale.replayed * written_positions(scale, scale.tokens - scale.answer, ROOM * scale.answer)
        longer = scale.tokens + (ROOM - 1) * scale.answer
        seen = longer if scale.context is None else min(longer, scale.context)
        return Overhead(
            device=scale.width * scale.weights if any(scale.kept[:-1]) else 0,
            passes=scale.replayed * (scale.forward * seen + seen - scale.tokens) / scale.tokens,
            texts=scale.replayed,
            positions=positions,
        )
    texts = sum(sum(scale.kept[:number]) for number in range(scale.number))
    prompt = scale.tokens - scale.answer
    positions = texts * written_positions(scale, prompt, ROOM * scale.answer)
    judged = positions + texts if settings.scorer == "confidence" and positions else 0
    return Overhead(passes=scale.forward * judged / scale.tokens, texts=texts, positions=positions)


def _sdft(settings: SDFTSettings, scale: Scale) -> Overhead:
    """An answer to every example whenever it comes, the teacher's pass over it behind what it is shown, a copy.

    Answers are counted as long as they can be; the student's pass over one stands for that over the example.
    """
    texts = sum(scale.trained)
    prompt, new = scale.tokens - scale.answer, settings.max_new_tokens or SDFT_ROOM * scale.answer
    positions = texts * written_positions(scale, prompt, new)
    shown = scale.tokens + prompt + new
    seen = shown if scale.context is None else min(shown, scale.context)
    return Overhead(
        device=0 if settings.teacher == "off" else scale.width * scale.weights,
        passes=texts * (scale.forward * seen + max(0, new - scale.answer)) / scale.tokens,
        texts=texts,
        positions=positions,
    )


COSTS: dict[str, MethodCosts] = {
    "seqft": MethodCosts(),
    "multitask": MethodCosts(),
    "replay": MethodCosts(),
    "derpp": MethodCosts(),
    "inscl": MethodCosts(),
    "seekr": MethodCosts(_seekr),
    "derpp_mse": MethodCosts(_derpp_mse),
    "ewc": MethodCosts(_ewc),
    "lwf": MethodCosts(_lwf),
    "agem": MethodCosts(_agem),
    "gem": MethodCosts(_gem),
    "ogd": MethodCosts(_ogd),
    "rwalk": MethodCosts(_rwalk),
    "olora": MethodCosts(_olora),
    "osft": MethodCosts(_osft),
    "progressive_prompts": MethodCosts(_progressive_prompts),
    "l2p": MethodCosts(_l2p),
    "sapt": MethodCosts(_sapt, replay_runs_model=False),
    "tree_lora": MethodCosts(_tree_lora),
    "icarl": MethodCosts(_icarl),
    "lfpt5": MethodCosts(_lfpt5, _replayed_lfpt5),
    "onpolicy_replay": MethodCosts(_onpolicy_replay, _replayed_onpolicy_replay),
    "sdft": MethodCosts(_sdft),
    "slao": MethodCosts(_slao),
    "inflora": MethodCosts(_inflora),
}
