"""What of a conversation is learned: the template's own text of it, and where its answers begin and end.

The whole conversation is rendered once. An answer begins where the prompt ends as it will stand when the model is asked
(``add_generation_prompt=True``) and runs to the end of the turn, with the template's own end-of-turn token. Marks of
``{% generation %}`` are not used: few templates have them, and some put the header or the line break after the turn
inside.

Where the prompt is not the beginning of the conversation, the answer begins where the two part, if they part in what
the template puts before an answer: a think block that is opened there and closed in the conversation, or that earlier
turns are written without. Of the last turn the model would then learn an answer to a prompt it is never asked with,
unless only white space is in the way; this is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.tasks.chat_template import ChatSettings, Conversation, Template
from seekr_cl.tasks.messages import WEIGHT, spoken

_PROBE = "seekr-answer-probe"
_REASON = "seekr-reason-probe"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: all of it, as the template writes it.
        learnt: begin and end, in characters, of what is learned, in order.
    """

    text: str
    learnt: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a template writes around an answer.

    Attributes:
        before: between prompt and answer.
        after: behind the answer at a conversation's end.
        ending: what of ``after`` belongs to the turn: as a rule one end-of-turn token, nothing in some templates.
        closing: between reasoning and answer; empty where reasoning is not written.
        opening: between prompt and reasoning.
    """

    before: str = ""
    after: str = ""
    ending: str = ""
    closing: str = ""
    opening: str = ""


class Renderer:
    """Renders conversations for training and prompts for generation.

    Args:
        tokenizer: a Hugging Face tokenizer.
        settings: how and which turns.
    """

    def __init__(self, tokenizer: Any, settings: ChatSettings) -> None:
        self.settings = settings
        self.template = Template(tokenizer, settings)
        self._eos = str(tokenizer.eos_token)
        self._turn: Turn | None = None

    @property
    def turn(self) -> Turn:
        """What the template writes around a plain answer; empty where it cannot be asked."""
        if self._turn is None:
            self._turn = self._probe()
        return self._turn

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any] | None,
        where: str,
    ) -> str:
        """What the model is shown when it is asked for the last of the messages.

        Raises:
            DataError: The template refuses or passes over messages.
        """
        one, _ = self.template.conversation(messages, tools, kwargs, where)
        return self._prompt(one, len(one.turns) - 1)

    def taught(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any] | None,
        where: str,
    ) -> Rendered:
        """The whole conversation and what of it is learned.

        Raises:
            DataError: The template refuses or passes over messages, or writes prompts that are no beginning of its
                conversations.
        """
        one, text = self.template.conversation(messages, tools, kwargs, where)
        last = len(one.turns) - 1
        asked = [last] if self.settings.train_on == "last" else range(len(one.turns))
        learnt: list[tuple[int, int]] = []
        for number in asked:
            if messages[number]["role"] == "assistant" and messages[number].get(WEIGHT, 1) != 0:
                begin, end, text = self._span(one, number, text, learnt[-1][1] if learnt else 0)
                learnt.append((begin, end))
        if not learnt:
            raise DataError(f"{where}: the last message has weight 0, so nothing is learned; set train_on: all")
        return Rendered(text, tuple(learnt))

    def _prompt(self, one: Conversation, number: int) -> str:
        """What stands before turn ``number`` when the model is asked for it."""
        text = self.template.checked(one, one.turns[:number], answer=True)
        if "add_generation_prompt" in self.template.source(one.tools):
            return text
        # Without that branch nothing says whose turn it is; in training the header stands there, so it must here.
        like = one.turns[number].get("content")
        probe = [{"type": "text", "text": _PROBE}] if isinstance(like, list) else _PROBE
        whole = self.template.checked(one, [*one.turns[:number], {"role": "assistant", "content": probe}])
        header = whole[len(text) :].partition(_PROBE)[0] if whole.startswith(text) else ""
        header = header.partition("<think>")[0]
        return text + header if header.strip() else text

    def _span(self, one: Conversation, number: int, text: str, least: int) -> tuple[int, int, str]:
        """Where turn ``number`` begins and ends in the text; the text, with an end-of-text token if it has no end."""
        prompt = self._prompt(one, number)
        begin = self._parting(prompt, text)
        last = number == len(one.turns) - 1
        if begin < len(prompt):
            bare = self.template.checked(one, one.turns[:number])
            rest = prompt[begin:].strip()
            if begin < self._parting(bare, prompt) or begin < least:
                raise DataError(
                    f"{one.where}: message {number + 1}: in the whole conversation {self.template.name} writes what "
                    "comes before this answer in another way than in its prompt (as a rule without earlier reasoning); "
                    "set train_on: last, or chat_template to a file that does not"
                )
            if rest and last:
                told = "chat_template_kwargs.enable_thinking so that they agree, or "
                raise DataError(
                    f"{one.where}: {self.template.name} ends its prompt with {rest[:40]!r}, which does not stand "
                    "before the answer in its conversation, so the model would be asked with another prompt than it "
                    f"learns; set {told if self.template.reads('enable_thinking') else ''}chat_template to a file that "
                    "writes the same before the answer in both"
                )
        if last:
            return begin, *self._end(text, begin)
        end = self._turn_end(one, number, prompt, text[begin:])
        if end is None:
            raise DataError(
                f"{one.where}: message {number + 1}: the end of this answer is not found in what "
                f"{self.template.name} makes of the whole conversation; set train_on: last"
            )
        return begin, begin + end, text

    def _end(self, text: str, begin: int) -> tuple[int, str]:
        """Where the last answer ends; a text that no end-of-turn token ends gets the tokenizer's end of text."""
        turn = self.turn
        if turn.after and text.endswith(turn.after) and len(text) - len(turn.after) >= begin:
            end = len(text) - len(turn.after) + len(turn.ending)
            if turn.ending.strip():
                return end, text
        else:
            end = max(begin, len(text.rstrip()))
            found = [one for one in self.template.marker.finditer(text, max(begin, end - 80)) if one.end() == end]
            if found and turn.after and not found[-1].group().startswith("</"):
                return end, text
        text = text[:end] + self._eos
        return len(text), text

    def _turn_end(self, one: Conversation, number: int, prompt: str, rest: str) -> int | None:
        """Where in ``rest``, which begins with turn ``number``, the turn ends; other turns follow it."""
        alone = self.template.checked(one, one.turns[: number + 1])
        own = alone[self._parting(prompt, alone) :]
        turn, after = self.turn, ""
        if turn.after and own.endswith(turn.after):
            after = turn.ending
            own = own[: len(own) - len(turn.after) + len(turn.ending)]
        own = own.rstrip()
        said = spoken(one.turns[number]).strip()
        bare = own[: len(own) - len(after)] if own.endswith(after) else own
        for written in (own, bare):
            # As the last turn it may begin with a think block that it does not have here.
            latest = written.rfind(said) if said else max(0, len(written) - len(after) - 1)
            shared = self._parting(written, rest)
            # Nothing of it is left out, or all that comes before some place, or what follows what both begin with.
            for kept, place in [(0, n) for n in range(max(0, latest) + 1)] + [
                (shared, n) for n in range(shared + 1, max(0, latest) + 1)
            ]:
                if written[place:] and rest.startswith(written[place:], kept):
                    end = kept + len(written) - place
                    if written is own or not after:
                        return end
                    # Another token ends a turn that is not the last.
                    mark = self.template.marker.match(rest, end)
                    return mark.end() if mark else end
        return None

    def _parting(self, one: str, other: str) -> int:
        """Where two texts part, but not within a marker of either."""
        place, beyond = 0, min(len(one), len(other)) + 1
        while beyond - place > 1:
            middle = (place + beyond) // 2
            place, beyond = (middle, beyond) if one[:middle] == other[:middle] else (place, middle)
        if place in (len(one), len(other)):
            return place
        for text in (one, other):
            for found in self.template.marker.finditer(text, max(0, place - 80), place + 80):
                if found.start() < place < found.end():
                    return found.start()
        return place

    def _probe(self) -> Turn:
        user = {"role": "user", "content": "seekr question probe"}
        answer = {"role": "assistant", "content": _PROBE}
        try:
            one, text = self.template.conversation([user, answer], None, None, "the probe")
            prompt = self._prompt(one, 1)
            before, _, after = text[self._parting(prompt, text) :].partition(_PROBE)
        except DataError:
            return Turn()
        opening = closing = ""
        try:
            reasoned = one.turns[1] | {"reasoning_content": _REASON}
            thought = self.template.write(one, [one.turns[0], reasoned])
            target = thought[self._parting(prompt, thought) :]
            if _REASON in target and _PROBE in target:
                opening, _, tail = target.partition(_REASON)
                closing = tail.partition(_PROBE)[0]
        except Exception:
            closing = ""
        return Turn(before, after, after[: self._ending(after)], closing, opening)

    def _ending(self, after: str) -> int:
        """How much of what follows the last answer is its end: up to the first markers that stand together."""
        end = 0
        for found in self.template.marker.finditer(after):
            if end and found.start() != end:
                break
            end = found.end()
        return end or len(after.rstrip())
