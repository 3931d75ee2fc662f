"""Examples become tokens, with an exact border between what is shown and what is learned."""

from dataclasses import dataclass
from typing import Any

from seekr_cl.errors import ConfigError, DataError, ModelError, TooLongError, nearest
from seekr_cl.renamed import current_value
from seekr_cl.tasks.chat_reading import AnswerReader, turn_ends
from seekr_cl.tasks.chat_rendering import Rendered, Renderer
from seekr_cl.tasks.chat_template import ChatSettings
from seekr_cl.tasks.collate import Encoded, Spans, collate
from seekr_cl.tasks.examples import Example
from seekr_cl.tasks.lossless import TextGuard
from seekr_cl.tasks.messages import REASONING, spoken
from seekr_cl.tasks.spans import tokenised

__all__ = ["BOUNDARIES", "Encoded", "Encoder", "Shown", "collate"]

BOUNDARIES = ("separate", "merged")


@dataclass(frozen=True, slots=True)
class Shown:
    """An example as it is taught, for people.

    Attributes:
        text: All of it, before anything is cut.
        learnt: Begin and end of what is learned, in characters of ``text``.
        encoded: Its tokens.
    """

    text: str
    learnt: Spans
    encoded: Encoded


class Encoder:
    """Turns examples into tokens for training and prompts into tokens for generation.

    ``separate`` tokenizes prompt and completion separately, so that no merge crosses the boundary, and truncates only
    the prompt. ``merged`` repeats the arithmetic of the official SEEKR code: prompt and answer are tokenized as one
    text, the label length is counted on the answer alone, and a text that is too long is truncated on the left,
    without BOS and EOS.

    Attributes:
        max_length: The most tokens one training example may have.
        prompt_boundary: ``"separate"`` or ``"merged"``.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        prompt_boundary: str = "separate",
        max_prompt_length: int | None = None,
        max_answer_length: int | None = None,
        chat: ChatSettings | None = None,
    ) -> None:
        """Prepare the encoder.

        Args:
            tokenizer: A Hugging Face tokenizer.
            max_length: The most tokens of one example.
            prompt_boundary: ``"separate"`` or ``"merged"``.
            max_prompt_length: The most tokens of the prompt; by default whatever ``max_length`` leaves.
            max_answer_length: The most tokens of the completion without EOS. ``"merged"`` only adds it to
                ``max_prompt_length``: together they are the most tokens of one example.
            chat: How conversations are rendered and which of their turns are learned.

        Raises:
            ConfigError: An unknown boundary, or lengths that are not whole numbers above zero or contradict each other.
            ModelError: The tokenizer has no end-of-text token.
        """
        lengths = {
            "max_length": max_length, "max_prompt_length": max_prompt_length, "max_answer_length": max_answer_length,
        }  # fmt: skip
        for key, value in lengths.items():
            if key != "max_length" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{key} must be a whole number above 0, not {value!r}")
        prompt_boundary = current_value("boundary", prompt_boundary)
        if prompt_boundary not in BOUNDARIES:
            hint = nearest(str(prompt_boundary), BOUNDARIES)
            raise ConfigError(f"prompt_boundary must be one of {', '.join(BOUNDARIES)}, not {prompt_boundary!r}{hint}")
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no end-of-text token, so a model cannot learn to stop; set tokenizer.eos_token"
            )
        self.max_length = max_length
        self.prompt_boundary = prompt_boundary
        self._tokenizer = tokenizer
        self._max_prompt = max_prompt_length
        self._max_answer = max_answer_length
        self._merged_length = max_length
        if max_prompt_length is not None and max_answer_length is not None and prompt_boundary == "merged":
            self._merged_length = max_prompt_length + max_answer_length
            if self._merged_length > max_length:
                raise ConfigError(
                    f"max_prompt_length + max_answer_length = {self._merged_length} is above max_length {max_length}; "
                    "raise max_length or lower one of the two"
                )
        self.texts = TextGuard(tokenizer)
        self._front = self._probe_front()
        self._cut: set[int] = set()
        self.chat = chat or ChatSettings()
        self._renderer = Renderer(tokenizer, self.chat)
        # A text that a chat template has rendered before may end with the end of a turn.
        self._ends = {tokenizer.eos_token_id, *turn_ends(tokenizer)}
        self._end_texts = sorted(tokenizer.convert_ids_to_tokens(sorted(self._ends)))
        self.reader = AnswerReader(tokenizer, self._renderer)

    @property
    def cut_count(self) -> int:
        """How many different examples were truncated on the left so far, in training or before generation."""
        return len(self._cut)

    def render(self, example: Example) -> tuple[str, str]:
        """Return the prompt and completion as text.

        Args:
            example: Any example; ``messages`` go through the tokenizer's chat template.

        Returns:
            Prompt, as it stands when the model is asked, and completion: of ``messages`` the last one's text.

        Raises:
            DataError: The tokenizer has no chat template, or its template refuses or passes over messages.
        """
        if example.messages is None:
            return example.prompt, example.completion
        prompt = self._renderer.prompt(example.messages, example.tools, example.template_kwargs, _where(example))
        return prompt, spoken(example.messages[-1])

    def reference(self, example: Example) -> str:
        """What a right answer says, as ``reader`` reads it: of a turn that only calls tools, the calls.

        Raises:
            DataError: ``messages`` cannot be rendered.
        """
        if example.messages is None:
            return example.completion
        if text := spoken(example.messages[-1]):
            return text
        rendered = self._taught(example)
        begin, end = rendered.learnt[-1]
        return self.reader.read(self._tokenizer.decode(self._ids(rendered.text[begin:end])), stripped=True)

    def show(self, example: Example) -> Shown:
        """An example as it is taught, with its text.

        Raises:
            DataError: As ``encode``.
        """
        encoded = self.encode(example)
        if self.prompt_boundary == "merged":
            begin = len(self._tokenizer.decode(encoded.input_ids[: encoded.completion_start]))
            text = self._tokenizer.decode(encoded.input_ids)
            return Shown(text, ((begin, len(text)),), encoded)
        if example.messages is not None:
            rendered = self._taught(example)
            # Of answers that were cut on the left nothing is learned.
            return Shown(rendered.text, rendered.learnt[-len(encoded.spans) :], encoded)
        prompt, completion = self.render(example)
        body = self._ids(prompt)
        added = self._front_of(body, example)
        front = "" if body[: len(added)] == added else "".join(self._tokenizer.convert_ids_to_tokens(added))
        eos = "" if self._ends.intersection(self._ids(completion)[-1:]) else self._tokenizer.eos_token
        begin = len(front) + len(prompt)
        text = f"{front}{prompt}{completion}{eos}"
        return Shown(text, ((begin, len(text)),), encoded)

    def encode(self, example: Example) -> Encoded:
        """Encode an example for training.

        Args:
            example: The example.

        Returns:
            Its tokens.

        Raises:
            DataError: The completion alone does not fit (``"separate"`` only), or ``messages`` cannot be rendered.
        """
        if example.messages is not None:
            rendered = self._taught(example)
            begin, end = rendered.learnt[-1]
            prompt, completion = rendered.text[:begin], rendered.text[begin:end]
        else:
            prompt, completion = self.render(example)
        if self.prompt_boundary == "merged":
            encoded = self._encode_merged(prompt, completion)
        elif example.messages is not None:
            encoded = self._encode_turns(example, rendered)
        else:
            encoded = self._encode_separate(example, prompt, completion)
        if encoded.prompt_tokens_cut:
            self._note_cut(example, prompt)
        return encoded

    def encode_prompt(self, example: Example, reserve: int = 0) -> list[int]:
        """Encode what comes before the completion, for generation.

        Args:
            example: The example; its completion is not looked at.
            reserve: Leave room for so many new tokens within ``max_length``.

        Returns:
            The prompt's tokens, cut from the left to fit; never empty.

        Raises:
            ConfigError: ``reserve`` leaves no room for a prompt.
            DataError: ``messages`` cannot be rendered.
        """
        if reserve >= self.max_length:
            raise ConfigError(
                f"{reserve} new tokens leave no room in max_length {self.max_length}; lower max_new_tokens"
            )
        room = self.max_length - reserve
        if self._max_prompt is not None:
            room = min(room, self._max_prompt)
        prompt, _ = self.render(example)
        if self.prompt_boundary == "merged":
            full = self._ids(prompt)
            ids = full[-room:]
            cut = len(full) - len(ids)
            if len(ids) < room:
                ids = self._with_bos(ids)
            ids = ids or [self._start_id()]
        else:
            ids, cut = self._separate_prompt(example, prompt, room)
        if cut:
            self._note_cut(example, prompt)
        return ids

    def _encode_separate(self, example: Example, prompt: str, completion: str) -> Encoded:
        eos = self._tokenizer.eos_token_id
        answer = self._ids(completion)
        where = example.source or "an example"
        self.texts.check_answer(completion, answer, where)
        if self._max_answer is not None and len(answer) > self._max_answer:
            raise TooLongError(
                f"{where}: the completion has {len(answer)} tokens, above max_answer_length {self._max_answer}; "
                "raise it or shorten the completion"
            )
        if not answer or answer[-1] not in self._ends:
            answer.append(eos)
        # One token must come before the completion: the model predicts every token from the one to its left.
        lead = max(1, len(self._front))
        if len(answer) + lead > self.max_length:
            raise TooLongError(
                f"{where}: the completion needs {len(answer)} tokens with EOS and {lead} before it, "
                f"above max_length {self.max_length}; raise max_length or shorten the completion"
            )
        room = self.max_length - len(answer)
        if self._max_prompt is not None:
            room = min(room, self._max_prompt)
        ids, cut = self._separate_prompt(example, prompt, room)
        return Encoded(ids + answer, len(ids), cut)

    def _encode_turns(self, example: Example, rendered: Rendered) -> Encoded:
        """A whole conversation; what is too long loses its left, and what nothing is learned of on the right."""
        ids, spans = tokenised(self._tokenizer, rendered.text, rendered.learnt)
        where = _where(example)
        self._refuse_ends_within(example)
        for (first, last), (begin, end) in zip(spans, rendered.learnt, strict=True):
            self.texts.check_learnt(rendered.text[begin:end], ids[first:last], where)
        answers = [end - begin for begin, end in spans]
        if self._max_answer is not None and max(answers) > self._max_answer + 1:
            raise TooLongError(
                f"{where}: an answer has {max(answers)} tokens with its end, above max_answer_length "
                f"{self._max_answer}; raise it or shorten the answer"
            )
        front = self._front_of(ids, example)
        lead = max(1, len(front))
        begin, end = spans[-1]
        if end - begin + lead > self.max_length:
            raise TooLongError(
                f"{where}: the completion needs {end - begin} tokens with its end and {lead} before it, "
                f"above max_length {self.max_length}; raise max_length or shorten the completion"
            )
        ids = ids[: max(end, self.max_length - lead + begin)]
        room = self.max_length - (len(ids) - begin)
        if self._max_prompt is not None:
            room = min(room, self._max_prompt)
        cut = max(0, begin - max(room, lead))
        if not cut:
            learnt, start = tuple(spans), begin
        else:
            # What is left of an answer that was cut has lost its question: it is shown and not learned.
            whole = [(a - cut, b - cut) for a, b in spans if a >= len(front) + cut]
            ids, start, learnt = front + ids[len(front) + cut :], begin - cut, tuple(whole)
        if learnt == ((start, len(ids)),):
            return Encoded(ids, start, cut)
        return Encoded(ids, start, cut, learnt)

    def _refuse_ends_within(self, example: Example) -> None:
        """Refuses answers that hold a token at which generation ends: what follows it could never be written."""
        for number, turn in enumerate(example.messages or (), 1):
            if turn["role"] != "assistant":
                continue
            for key, said in {"content": spoken(turn), **{key: turn[key] for key in REASONING if key in turn}}.items():
                for end in self._end_texts:
                    if end in said:
                        raise DataError(
                            f"{_where(example)}: message {number}: {key!r} holds {end!r}, at which an answer ends; "
                            "remove it, the chat template writes its own"
                        )

    def _separate_prompt(self, example: Example, prompt: str, room: int) -> tuple[list[int], int]:
        body = self._ids(prompt)
        self.texts.check_prompt(prompt, body, _where(example))
        front = self._front_of(body, example)
        if body[: len(front)] == front:
            body = body[len(front) :]
        keep = max(0, room - len(front))
        cut = max(0, len(body) - keep)
        return (front + body[cut:]) or [self._start_id()], cut

    def _encode_merged(self, prompt: str, completion: str) -> Encoded:
        full = self._ids(prompt + completion)
        ids = full[-self._merged_length :]
        cut = len(full) - len(ids)
        if len(ids) < self._merged_length:
            ids.append(self._tokenizer.eos_token_id)
        if len(ids) < self._merged_length:
            ids = self._with_bos(ids)
        # The official labels are the last so many tokens, counted on the answer alone with its EOS, whatever these are.
        label_length = min(len(self._ids(completion)) + 1, self._merged_length, len(ids))
        return Encoded(ids, len(ids) - label_length, cut)

    def _front_of(self, body: list[int], example: Example) -> list[int]:
        """What stands in front of a text for good: special tokens that it begins with, or gets from the tokenizer.

        Neither a chat template nor a text that one has made gets the tokenizer's: the BOS would stand there twice.
        """
        bos = self._tokenizer.bos_token_id
        if self._front and body[: len(self._front)] == self._front:
            return list(self._front)
        if bos is not None and body[:1] == [bos]:
            return [bos]
        return list(self._front) if example.messages is None else []

    def _taught(self, example: Example) -> Rendered:
        assert example.messages is not None
        return self._renderer.taught(example.messages, example.tools, example.template_kwargs, _where(example))

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self._tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _ids(self, text: str) -> list[int]:
        # verbose=False: a prompt longer than the model is cut here on purpose, which needs no warning.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _start_id(self) -> int:
        """Return the token that stands before a completion that nothing else stands before."""
        bos = self._tokenizer.bos_token_id
        return int(self._tokenizer.eos_token_id if bos is None else bos)

    def _probe_front(self) -> list[int]:
        """Find which special tokens this tokenizer puts in front of a text; what it puts behind is dropped."""
        bare, full = self._ids("a"), list(self._tokenizer("a")["input_ids"])
        for start in range(len(full) - len(bare) + 1):
            if bare and full[start : start + len(bare)] == bare:
                return full[:start]
        return []

    def _note_cut(self, example: Example, prompt: str) -> None:
        self._cut.add(hash((example.source, prompt)))


def _where(example: Example) -> str:
    return example.source or "an example"
