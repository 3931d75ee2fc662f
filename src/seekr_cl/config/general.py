"""``general``: a file of general data for task 0, or ``self``: the base model writes it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

from seekr_cl.errors import ConfigError
from seekr_cl.settings import Ge, Gt, Hint, Le, Settings, build

SELF = "self"
SAMPLES = 32
"""How many samples the base model writes if nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class SelfWritten(Settings):
    """How the base model writes its own general data; how many samples is ``general_samples`` (32).

    Attributes:
        prompts: a file or folder of examples whose prompts it answers; their answers are not looked at. Default none:
            it begins with nothing, or with a question of its own behind the chat template's opening.
        max_new_tokens: where a text, or a question or answer, is broken off.
        temperature: of the draws.
        top_k: tokens that may be drawn at each place.
        min_tokens: texts of fewer tokens are not kept.
        max_repetition: texts of whose runs of four tokens a larger share has come before are not kept.
        tries: texts that may be written for each sample that is wanted.
    """

    section: ClassVar[str] = "general"
    prompts: str | None = None
    max_new_tokens: Annotated[int, Ge(1)] = 128
    temperature: Annotated[float, Gt(0), Hint("0 would write one text again and again")] = 1.0
    top_k: Annotated[int, Ge(0), Hint("0 draws from all tokens")] = 0
    min_tokens: Annotated[int, Ge(1)] = 4
    max_repetition: Annotated[float, Ge(0), Le(1), Hint("1 keeps every text")] = 0.5
    tries: Annotated[int, Ge(1)] = 4


def read_general(value: Any) -> str | SelfWritten | None:
    """The ``general`` setting: a file's name, ``self``, or a mapping with ``source: self`` and its settings.

    Raises:
        ConfigError: for anything else; a file that is called self is ``./self``.
    """
    if value is None or isinstance(value, SelfWritten):
        return value
    if isinstance(value, Mapping):
        given = dict(value)
        source = given.pop("source", None)
        if source != SELF:
            raise ConfigError(f"general.source: {source!r} is not self; a file has no settings, give its name alone")
        return build(SelfWritten, given, "general")
    if not isinstance(value, str):
        raise ConfigError(f"general: {value!r} is no file's name, not self, and no mapping with source: self")
    return SelfWritten() if value == SELF else value


def as_json(general: str | SelfWritten | None) -> str | dict[str, Any] | None:
    """The name of the file, or source and settings."""
    return {"source": SELF} | asdict(general) if isinstance(general, SelfWritten) else general
