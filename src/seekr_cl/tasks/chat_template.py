"""A tokenizer's chat template as a function of a conversation: one clock, and forms that the template can read.

Templates differ in what they take: ``content`` as text or as a list of parts, ``arguments`` of a tool call as an object
or as JSON. A conversation is tried in the form it came in and then in the others, and a form is taken only if every
message's text stands in what the template writes, which is asked with made-up words in the messages' places.
"""

import copy
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from itertools import product
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import TemplateSyntaxError
from transformers.utils import chat_template_utils

from seekr_cl.errors import ConfigError, DataError, nearest
from seekr_cl.tasks.keys import DataWarning
from seekr_cl.tasks.messages import REASONING, WEIGHT, spoken
from seekr_cl.tasks.templates import TemplateError, bounded

TRAIN_ON = ("all", "last")
DATE = "2024-07-26"
"""What a template's ``strftime_now`` says: the day that Llama 3's templates fall back to themselves."""
_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name", *REASONING)
TAKEN = frozenset(
    (
        "messages",
        "conversation",
        "tools",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "chat_template",
    )
)
"""What ``apply_chat_template`` is told by the library, and no one else may tell it."""
Turns = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatSettings:
    """How conversations are rendered and which of their turns are learned.

    Attributes:
        train_on: ``all`` assistant turns of a conversation or only the ``last``.
        template_kwargs: what the template is told, such as ``enable_thinking``; a record's own come on top.
        date: the day, ``YYYY-MM-DD``, that templates with a date write.
        strip_thinking: whether the score sees answers without think block and markers.

    Raises:
        ConfigError: an unknown ``train_on``, no mapping, or no date.
    """

    train_on: str = "all"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str = DATE
    strip_thinking: bool = True

    def __post_init__(self) -> None:
        if self.train_on not in TRAIN_ON:
            hint = nearest(str(self.train_on), TRAIN_ON)
            raise ConfigError(f"train_on: {self.train_on!r} is unknown{hint}; choose from {', '.join(TRAIN_ON)}")
        if not isinstance(self.template_kwargs, Mapping):
            raise ConfigError(
                f"chat_template_kwargs: {self.template_kwargs!r} is not a mapping; write e.g. "
                "chat_template_kwargs.enable_thinking=false"
            )
        if wrong := [key for key in self.template_kwargs if key in TAKEN]:
            raise ConfigError(f"chat_template_kwargs: {wrong[0]!r} is set by the library; remove it")
        try:
            date.fromisoformat(self.date)
        except (ValueError, TypeError):
            raise ConfigError(f"template_date: {self.date!r} is not a date; write YYYY-MM-DD") from None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation in the form that the template reads.

    Attributes:
        turns: the messages, without their weights.
        tools: what may be called.
        kwargs: what the template is told.
        where: file and row, for messages.
    """

    turns: Turns
    tools: list[dict[str, Any]] | None
    kwargs: dict[str, Any]
    where: str


class Template:
    """A tokenizer's chat template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        settings: what the template is told, and the date.
    """

    def __init__(self, tokenizer: Any, settings: ChatSettings) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        self._forms: dict[str, int] = {}
        self._warned: set[str] = set()
        model = str(getattr(tokenizer, "name_or_path", "") or "")
        self.name = f"the chat template of {model}" if model else "the chat template"
        # A marker that a text must not be cut within: an added token, or what looks like one.
        # Some tokenizers add white space and words too, which mark nothing.
        marks = (str(one) for one in tokenizer.get_added_vocab() if one.strip() and not one.isalnum())
        added = sorted(marks, key=len, reverse=True)
        self.marker = re.compile("|".join([*map(re.escape, added), r"<[^<>\s]{1,60}>"]))

    def source(self, tools: Any = None) -> str:
        """The template's own text; of named templates the one for conversations with or without tools."""
        return str(self._tokenizer.get_chat_template(tools=tools))

    def write(self, one: Conversation, turns: Sequence[Mapping[str, Any]], answer: bool = False) -> str:
        """What the template makes of some turns, ready for an answer or not.

        Raises:
            Exception: whatever the template raises; templates are programs of their own.
        """
        with bounded(self.source(one.tools)), _clock(self._settings.date):
            text = self._tokenizer.apply_chat_template(
                list(turns),
                tools=one.tools,
                tokenize=False,
                add_generation_prompt=answer,
                **one.kwargs,
            )
        return str(text)

    def conversation(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any] | None,
        where: str,
    ) -> tuple[Conversation, str]:
        """A conversation in the first form whose every message stands in the rendering, and that rendering.

        Raises:
            DataError: There is not a template, it refuses the messages, or passes over one in every form.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise DataError(
                f"{where}: has 'messages' but the tokenizer has no chat template; "
                "use records with prompt and completion, or set tokenizer.chat_template (chat_template: FILE)"
            )
        known = [dict(tool) for tool in tools] if tools else None
        self._require_template(known, where)
        words = _words(self.source(known))
        plain = [
            {_readable(key, turn, words): value for key, value in turn.items() if key != WEIGHT} for turn in messages
        ]
        self._refuse_unknown_keys(plain, known, where)
        told = {**self._settings.template_kwargs, **(kwargs or {})}
        self._refuse_unread(told, where)
        shape = json.dumps([[_shape(turn) for turn in plain], known, told], default=str, sort_keys=True)
        forms = list(_forms(plain))
        if shape in self._forms:
            one = Conversation(forms[self._forms[shape]], known, told, where)
            return one, self.checked(one, one.turns)
        refused: list[str] = []
        missing: list[str] = []
        for number, turns in enumerate(forms):
            one = Conversation(turns, known, told, where)
            try:
                text = self.write(one, turns)
            except Exception as error:
                refused.append(self._refusal(where, error))
                continue
            if fault := self._passed_over(one):
                missing.append(fault)
                continue
            self._forms[shape] = number
            self._warn_of_unwritten(one, text)
            return one, text
        # That a text is missing says more than that another form is refused.
        raise DataError((missing or refused)[0])

    def checked(self, one: Conversation, turns: Sequence[Mapping[str, Any]], answer: bool = False) -> str:
        """``write``, with what the template raises as this library's error.

        Raises:
            DataError: naming the row and the template's reason.
        """
        try:
            return self.write(one, turns, answer)
        except Exception as error:  # templates are programs of their own and raise what they like
            raise DataError(self._refusal(one.where, error)) from None

    def _refusal(self, where: str, error: Exception) -> str:
        reason = " ".join(str(error).split())[:200]
        # raise_exception() in a template raises this class itself, and Jinja only those below it.
        if type(error) is JinjaError:
            return (
                f"{where}: {self.name} refuses the messages ({reason}); change them as it says, or set chat_template "
                "to a file that takes them"
            )
        if isinstance(error, TemplateSyntaxError | TemplateError):
            return f"{where}: {self.name} is broken ({reason}); set chat_template to a file with a working one"
        return (
            f"{where}: {self.name} cannot write the messages ({type(error).__name__}: {reason}); leave out what it "
            "does not take, or set chat_template to a file that takes them"
        )

    def _require_template(self, tools: Any, where: str) -> None:
        """Of named templates one is used by its purpose: ``default``, or ``tool_use`` where there are tools."""
        named = self._tokenizer.chat_template
        if isinstance(named, Mapping) and "default" not in named and not (tools and "tool_use" in named):
            raise DataError(
                f"{where}: {self.name} has variants ({', '.join(map(str, named))}) and none is named 'default'; "
                "set chat_template to the file of the one to use"
            )

    def _refuse_unread(self, told: Mapping[str, Any], where: str) -> None:
        named = self._tokenizer.chat_template
        words = _words("\n".join(map(str, named.values())) if isinstance(named, Mapping) else str(named))
        for key in told:
            if key in TAKEN:
                raise DataError(f"{where}: chat_template_kwargs: {key!r} is set by the library; remove it")
            if key not in words:
                raise DataError(
                    f"{where}: chat_template_kwargs: {key!r} would be ignored: {self.name} does not read it; "
                    f"remove it{nearest(str(key), words)}"
                )

    def reads(self, name: str) -> bool:
        """Whether a word stands in the template, such as the name of an option."""
        return name in _words(self.source())

    def _refuse_unknown_keys(self, turns: Turns, tools: Any, where: str) -> None:
        for number, turn in enumerate(turns, 1):
            for key in turn.keys() - set(_KEYS):
                if not re.search(rf"\b{re.escape(str(key))}\b", self.source(tools)):
                    raise DataError(
                        f"{where}: message {number}: key {key!r} would be ignored: {self.name} does not use it; "
                        f"remove it{nearest(str(key), [*_KEYS, WEIGHT])}"
                    )

    def _warn_of_unwritten(self, one: Conversation, text: str) -> None:
        """Says once of which keys that only some templates write nothing is shown or learned."""
        for key in (*REASONING, "name"):
            # A tool's result is often written without the tool's name, which the call before it has.
            holding = [n for n, turn in enumerate(one.turns, 1) if turn.get(key) and turn["role"] != "tool"]
            if not holding or key in self._warned or str(one.turns[holding[-1] - 1][key]).strip() in text:
                continue
            # Most templates leave out what was thought before the latest question.
            if key == "name" or holding[-1] == len(one.turns) or not self.reads(key):
                self._warned.add(key)
                warnings.warn(
                    f"{one.where}: message {holding[-1]}: {self.name} does not write {key!r}, so it is neither shown "
                    "nor learned",
                    DataWarning,
                    stacklevel=2,
                )

    def _passed_over(self, one: Conversation) -> str | None:
        """What of a conversation the template does not write, as an error; ``None`` if it writes everything."""
        words: dict[str, str] = {}

        def word(what: str) -> str:
            name = f"seekr{len(words)}probe"
            words[name] = what
            return name

        turns: Turns = []
        for number, turn in enumerate(one.turns, 1):
            made = dict(turn)
            what = f"message {number}: {self.name} passes over"
            content = turn.get("content")
            if isinstance(content, str) and content.strip():
                made["content"] = word(f"{what} the text of role {turn['role']!r}")
            elif isinstance(content, list):
                text = f"{what} a text part of role {turn['role']!r}"
                made["content"] = [part | {"text": word(text)} if part["text"].strip() else part for part in content]
            if "tool_calls" in turn:
                made["tool_calls"] = [_probe_call(call, word, f"{what} tool call") for call in turn["tool_calls"]]
            turns.append(made)
        tools = None
        if one.tools:
            tools = copy.deepcopy(one.tools)
            for number, tool in enumerate(tools, 1):
                inner = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
                inner["name"] = word(f"tool {number}: {self.name} passes over the tools, such as {inner['name']!r}")
        try:
            text = self.write(Conversation(turns, tools, one.kwargs, one.where), turns)
        except Exception:
            # A template that wants certain texts is asked with the texts themselves.
            text = self.write(one, one.turns)
            missing = [n for n, turn in enumerate(one.turns, 1) if spoken(turn).strip() not in text]
            passed = f"{self.name} passes over its text"
            words = {spoken(one.turns[n - 1]).strip(): f"message {n}: {passed}" for n in missing}
        for turn in turns:
            if isinstance(turn.get("content"), list):
                as_it_is = (str(turn["content"]), json.dumps(turn["content"]))
                if any(form in text for form in as_it_is):
                    return f"{one.where}: {self.name} writes lists of parts as they are; join their texts"
        for name, what in words.items():
            if name not in text:
                advice = "use roles that it writes, or set chat_template to a file that writes it"
                return f"{one.where}: {what}; {advice}"
        for turn in turns:
            for call in turn.get("tool_calls", ()):
                given = (call.get("function") or call).get("arguments")
                # As a string within a string, or in braces of the template's own, they are no arguments any more.
                if given and isinstance(given, str) and (given not in text or f"{{{given}" in text):
                    return f"{one.where}: {self.name} does not write arguments given as JSON text; give objects"
        return None


def _readable(key: str, turn: Mapping[str, Any], words: frozenset[str]) -> str:
    """A key by the name that the template reads: what an assistant thought is called one thing or another."""
    if key not in REASONING or key in words:
        return key
    return next((one for one in REASONING if one in words and one not in turn), key)


@lru_cache(maxsize=16)
def _words(source: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", source))


def _probe_call(call: Mapping[str, Any], word: Any, what: str) -> dict[str, Any]:
    inner = dict(call["function"] if isinstance(call.get("function"), Mapping) else call)
    inner["name"] = word(f"{what} {inner['name']!r}")
    arguments = inner.get("arguments")
    if arguments:
        made = {word(f"{what}'s arguments"): word(f"{what}'s arguments")}
        inner["arguments"] = json.dumps(made) if isinstance(arguments, str) else made
    return {**call, "function": inner} if isinstance(call.get("function"), Mapping) else inner


def _shape(turn: Mapping[str, Any]) -> list[Any]:
    """What a template may tell conversations apart by, beside their words."""
    content = turn.get("content")
    if isinstance(content, list):
        kind: Any = [bool(part["text"].strip()) for part in content]
    else:
        kind = None if content is None else bool(content.strip())
    calls = [
        [sorted(call), isinstance((call.get("function") or call).get("arguments"), str)]
        for call in turn.get("tool_calls", ())
    ]
    return [turn["role"], kind, calls, sorted(turn.keys() - {"content", "role"})]


def _forms(turns: Turns) -> Iterator[Turns]:
    """The same conversation as it is, and with contents and arguments in the other forms that templates take."""
    seen: list[Turns] = []
    for content, arguments, empty in product((False, True), (False, True), (None, "")):
        form = [_formed(turn, content, arguments, empty) for turn in turns]
        if form not in seen:
            seen.append(form)
            yield form


def _formed(turn: dict[str, Any], other_content: bool, other_arguments: bool, empty: str | None) -> dict[str, Any]:
    made = dict(turn)
    content = turn.get("content")
    if content is None:
        made["content"] = empty
    elif other_content:
        made["content"] = spoken(turn) if isinstance(content, list) else [{"type": "text", "text": content}]
    if other_arguments and "tool_calls" in turn:
        made["tool_calls"] = [_other_arguments(call) for call in turn["tool_calls"]]
    return made


def _other_arguments(call: dict[str, Any]) -> dict[str, Any]:
    inner = dict(call["function"] if isinstance(call.get("function"), Mapping) else call)
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments)
        except ValueError:
            read = arguments
        inner["arguments"] = read if isinstance(read, dict) else arguments
    elif isinstance(arguments, Mapping):
        inner["arguments"] = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": inner} if isinstance(call.get("function"), Mapping) else inner


@contextmanager
def _clock(day: str) -> Iterator[None]:
    """Stops the clock that ``strftime_now`` reads: what is learned must not depend on the day it is resumed."""
    module: Any = chat_template_utils
    former = module.datetime

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Stopped":
            return cls.fromisoformat(day).replace(tzinfo=tz)

    module.datetime = Stopped
    try:
        yield
    finally:
        module.datetime = former
