"""General data that the base model writes (``general: self``): its own texts, or its answers to given prompts.

After 2605.26097, where a model's own unconditional samples as replay nearly removed forgetting. A base model's text
begins with nothing but its start token. A chat model begins behind what its template writes before a user's message:
it writes the question, and then answers it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from seekr_cl.config.general import SelfWritten
from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError, DataError
from seekr_cl.evaluation.generate import stop_ids
from seekr_cl.memory import ReplaySample
from seekr_cl.methods import Context
from seekr_cl.methods.common.generation import write
from seekr_cl.models.context import context_length
from seekr_cl.tasks import Encoder, Example, Task

_PROBE = "seekr-question-probe"
_RUN = 4
"""Tokens of a run that is looked for again."""


@dataclass(slots=True)
class _Writer:
    """What has been written so far.

    Attributes:
        settings: how.
        context: the model, as it is before the first task.
        encoder: of the config.
        count: samples that are wanted.
        kept: what is kept: the prompt's text, the answer's text, all tokens, where the answer begins.
        left_out: how many texts were not kept, by the reason.
    """

    settings: SelfWritten
    context: Context
    encoder: Encoder
    count: int
    kept: list[tuple[str, str, list[int], int]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    _seen: set[tuple[str, str]] = field(default_factory=set)
    _calls: int = 0

    def complete(self) -> None:
        """Writes until there are enough texts or no more are to be tried."""
        seeds = self._seed_prompts()
        for number in range(self.settings.tries):
            missing = self.count - len(self.kept)
            if missing <= 0:
                return
            # Of few seed prompts each is answered several times.
            asked = [seeds[(number * self.count + place) % len(seeds)] for place in range(missing)] if seeds else None
            prompts = self._openings(missing) if asked is None else asked
            for (prompt, ids), new in zip(prompts, self._write([ids for _, ids in prompts]), strict=True):
                self._keep(prompt, ids, new)

    def _seed_prompts(self) -> list[tuple[str, list[int]]]:
        if self.settings.prompts is None:
            return []
        examples = Task.load(self.settings.prompts, name="general").train
        room = min(self.settings.max_new_tokens, self.encoder.max_length - 1)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(self.context.seed)).tolist()
        some = [examples[place] for place in order[: self.count * self.settings.tries]]
        return [(self.encoder.render(one)[0], self.encoder.encode_prompt(one, reserve=room)) for one in some]

    def _openings(self, count: int) -> list[tuple[str, list[int]]]:
        """What as many texts begin with: the start token, or questions that the model has written."""
        tokenizer = self.context.tokenizer
        assert tokenizer is not None
        if getattr(tokenizer, "chat_template", None) is None:
            return [("", self.encoder.encode_prompt(Example("", "")))] * count
        opening = self._asked(_PROBE)[0].partition(_PROBE)[0]
        ids = list(tokenizer(opening, add_special_tokens=False)["input_ids"])
        found = []
        for new in self._write([ids] * count):
            text = self._text(new).strip()
            if not self._may_stay(new, "question"):
                continue
            try:
                found.append(self._asked(text))
            except DataError:
                self.left_out["unreadable"] += 1
        return found

    def _asked(self, question: str) -> tuple[str, list[int]]:
        turns = ({"role": "user", "content": question}, {"role": "assistant", "content": "-"})
        example = Example("", "", messages=turns)
        room = min(self.settings.max_new_tokens, self.encoder.max_length - 1)
        return self.encoder.render(example)[0], self.encoder.encode_prompt(example, reserve=room)

    def _write(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        if not prompts:
            return []
        assert self.context.tokenizer is not None
        self._calls += 1
        context = context_length(self.context.model)
        longest = max(map(len, prompts))
        limit = min(self.encoder.max_length, context or self.encoder.max_length) - longest
        written = write(
            self.context.model,
            prompts,
            max(1, min(self.settings.max_new_tokens, limit)),
            eos_id=self._ends,
            pad_id=self.context.layout.pad_id,
            seed=self.context.seed + self._calls,
            top_k=self.settings.top_k,
            temperature=self.settings.temperature,
        )
        # All processes have the same texts, whatever their devices round to.
        return list(collectives.broadcast_object(written))

    @property
    def _ends(self) -> list[int]:
        assert self.context.tokenizer is not None
        return stop_ids(self.context.tokenizer, self.context.model.generation_config)

    def _unended(self, new: list[int]) -> list[int]:
        return new[:-1] if new and new[-1] in self._ends else new

    def _may_stay(self, new: list[int], what: str) -> bool:
        ids = self._unended(new)
        runs = [tuple(ids[place : place + _RUN]) for place in range(len(ids) - _RUN + 1)]
        if len(ids) < self.settings.min_tokens:
            self.left_out["short"] += 1
        elif runs and 1 - len(set(runs)) / len(runs) > self.settings.max_repetition:
            self.left_out["repeating"] += 1
        elif (key := (what, " ".join(map(str, ids)))) in self._seen:
            self.left_out["written before"] += 1
        else:
            self._seen.add(key)
            return True
        return False

    def _keep(self, prompt: str, ids: list[int], new: list[int]) -> None:
        if len(self.kept) < self.count and self._may_stay(new, prompt):
            self.kept.append((prompt, self._text(new), [*ids, *new], len(ids)))

    def _text(self, new: list[int]) -> str:
        assert self.context.tokenizer is not None
        return str(self.context.tokenizer.decode(self._unended(new), skip_special_tokens=True))


def write_general(
    settings: SelfWritten, context: Context, encoder: Encoder, count: int
) -> tuple[list[ReplaySample], str]:
    """Samples of general data by the model as it is, and a sentence about what was left out.

    Args:
        settings: how they are written.
        context: the model before the first task; ``context.seed`` decides every draw.
        encoder: of the config.
        count: how many are wanted; a warning says if there are fewer.

    Raises:
        ConfigError: if nothing that it writes can be kept.
    """
    writer = _Writer(settings, context, encoder, count)
    writer.complete()
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(writer.left_out.items()))
    said = f"{len(writer.kept)} texts kept" + (f", left out: {reasons}" if reasons else "")
    if not writer.kept:
        raise ConfigError(
            f"general: self: none of what the model writes can be kept ({reasons}); raise general.max_repetition or "
            "lower general.min_tokens, name general.prompts, or a file of general data"
        )
    if len(writer.kept) < count:
        context.warn(f"general: self: {len(writer.kept)} of {count} samples ({reasons}); raise general.tries")
    return [ReplaySample(prompt, text, torch.tensor(ids), begin) for prompt, text, ids, begin in writer.kept], said
