"""What generates answers: transformers, or vLLM where it is installed, behind one interface."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl.errors import ConfigError, ModelError, first_line
from seekr_cl.evaluation.batches import BATCH_TOKENS
from seekr_cl.evaluation.generate import answer_texts, decides_alone, generate_answers, stop_ids, warn_of_less
from seekr_cl.evaluation.speed import Speed

Answers = Callable[[Sequence[int], Sequence[str]], None]


class Engine(Protocol):
    """Greedy answers to tokenized prompts.

    Attributes:
        speed: what was generated so far, and in which time.
    """

    speed: Speed

    def describe(self) -> dict[str, Any]:
        """Engine, version, dtype, device, sizes of batches and decoding, as the score file records them."""

    def answer(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, on_answers: Answers, keep_markers: bool = False
    ) -> None:
        """Answers all prompts; calls ``on_answers`` with (their numbers, texts) whenever some are done.

        With ``keep_markers`` the texts keep their special tokens, except the one that ended them.
        """


@dataclass(slots=True)
class TransformersEngine:
    """``model.generate`` in batches of similar length, with a KV cache; a row stops at its end-of-text token.

    Attributes:
        model: any causal language model.
        tokenizer: its tokenizer.
        batch_size: the most prompts at a time; ``None`` is as many as ``batch_tokens`` allow.
        batch_tokens: the most tokens at a time, padded prompts and new ones together; fewer once that has not fitted
            into memory.
        speed: what was generated so far, and in which time.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int | None = None
    batch_tokens: int = BATCH_TOKENS
    speed: Speed = field(default_factory=Speed)
    _fitting: int | None = field(default=None, init=False)

    def describe(self) -> dict[str, Any]:
        """What the score file records: what was asked for, since processes with other memory must say the same."""
        same = decides_alone(self.model) and self.model.device.type == "cpu"
        return {
            "engine": "transformers",
            "version": transformers.__version__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "attention": self.model.config._attn_implementation,
            "batch_size": self.batch_size,
            "batch_tokens": self.batch_tokens,
            "same_for_any_batch_size": same,
            "decoding": _greedy(self.tokenizer, stop_ids(self.tokenizer, self.model.generation_config)),
        }

    def answer(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, on_answers: Answers, keep_markers: bool = False
    ) -> None:
        """Answers all prompts."""
        generate_answers(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens,
            self.batch_size,
            on_answers=on_answers,
            keep_markers=keep_markers,
            batch_tokens=self._fitting or self.batch_tokens,
            speed=self.speed,
            on_less=self._go_on_with,
        )

    def _go_on_with(self, batch_tokens: int) -> None:
        """Fewer tokens at a time, for later prompts too, which is said once."""
        if self._fitting is None:
            warn_of_less(batch_tokens)
        self._fitting = batch_tokens


@dataclass(slots=True)
class VllmEngine:
    """vLLM's offline engine, for large models on a GPU. It could not be run where this was written.

    Attributes:
        model: folder or Hub name.
        tokenizer: the model's tokenizer.
        dtype: as vLLM calls it: float32, bfloat16, float16, auto.
        max_length: prompt and answer together, in tokens.
        batch_size: prompts handed over at a time; vLLM schedules within them, and they are written down together.
        speed: what was generated so far, and in which time.
    """

    model: str
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    max_length: int
    batch_size: int
    speed: Speed = field(default_factory=Speed)
    _llm: Any = field(init=False)
    _version: str = field(init=False)
    _ends: list[int] = field(init=False)

    def __post_init__(self) -> None:
        try:
            import vllm
        except ImportError as error:
            raise ConfigError(
                "engine vllm: vllm is not installed; pip install vllm in an environment of its own (it brings a torch "
                "of its own), or use --engine transformers"
            ) from error
        self._version = vllm.__version__
        # vLLM decodes greedily only without the model's own settings, so their ends of text are handed over.
        try:
            settings = transformers.GenerationConfig.from_pretrained(self.model)
        except OSError:
            settings = None
        self._ends = stop_ids(self.tokenizer, settings)
        try:
            # The seed of vLLM's engine matters only where it samples, and greedy decoding does not.
            self._llm = vllm.LLM(
                model=self.model, dtype=self.dtype, max_model_len=self.max_length, seed=0, generation_config="vllm"
            )
        except Exception as error:
            raise ModelError(f"{self.model}: vllm cannot load it ({first_line(error)})") from error

    def describe(self) -> dict[str, Any]:
        """What the score file records."""
        return {
            "engine": "vllm",
            "version": self._version,
            "dtype": self.dtype,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "attention": "vllm",
            "batch_size": self.batch_size,
            "same_for_any_batch_size": False,
            "decoding": _greedy(self.tokenizer, self._ends),
        }

    def answer(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, on_answers: Answers, keep_markers: bool = False
    ) -> None:
        """Answers all prompts."""
        import vllm

        eos = self.tokenizer.eos_token_id
        # Tokens are made text here, as the other engine's are.
        settings = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop_token_ids=self._ends,
            detokenize=False,
        )
        order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            asked = [{"prompt_token_ids": list(prompts[index]) or [eos]} for index in indices]
            with self.speed.timing():
                done = self._llm.generate(asked, settings, use_tqdm=False)
            new = [list(one.outputs[0].token_ids) for one in done]
            self.speed.new_tokens += sum(map(len, new))
            on_answers(indices, answer_texts(self.tokenizer, new, self._ends, keep_markers))


def _greedy(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> dict[str, Any]:
    return {"strategy": "greedy", "stop": tokenizer.convert_ids_to_tokens(list(ends))}
