"""Settings of conversations, out of the top level where people look for them."""

from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

from seekr_cl.errors import ConfigError
from seekr_cl.settings import Settings
from seekr_cl.tasks.chat_template import DATE, ChatSettings


@dataclass(frozen=True, kw_only=True)
class Asked(Settings):
    """Settings of conversations that hold where nothing is learned; those of ``SeekrConfig``."""

    section: ClassVar[str] = "evaluate"
    chat_template: str | None = None
    chat_template_kwargs: Any = field(default_factory=dict)
    template_date: Any = DATE
    strip_thinking: bool = True

    def chat(self, train_on: str = "all") -> ChatSettings:
        """How conversations are rendered.

        Raises:
            ConfigError: for a value that cannot be honored.
        """
        return ChatSettings(
            train_on=train_on,
            template_kwargs={} if self.chat_template_kwargs is None else self.chat_template_kwargs,
            # YAML reads a day without quotes as one.
            date=str(self.template_date) if isinstance(self.template_date, date) else self.template_date,
            strip_thinking=self.strip_thinking,
        )


def chat_settings(config: Any, method: Any) -> ChatSettings:
    """How conversations are rendered and which turns are learned.

    Args:
        config: with ``train_on``, ``prompt_boundary`` and the fields of ``Asked``.
        method: the method's class.

    Raises:
        ConfigError: for a value that cannot be honored.
    """
    one_answer = method.last_turn_only or config.prompt_boundary == "merged"
    if one_answer and config.train_on == "all":
        who = f"method {method.name}" if method.last_turn_only else "prompt_boundary: merged"
        raise ConfigError(f"train_on: {who} learns one answer per example; set train_on: last, or remove it")
    asked = Asked(**{one.name: getattr(config, one.name) for one in fields(Asked)})
    return asked.chat(config.train_on or ("last" if one_answer else "all"))


def set_template(tokenizer: Any, file: str | None) -> None:
    """Gives a tokenizer the chat template of a file, with which it is then saved.

    Raises:
        ConfigError: naming the file that cannot be read or is empty.
    """
    if file is None:
        return
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"chat_template: {file} cannot be read ({reason}); name a Jinja file") from None
    if not text.strip():
        raise ConfigError(f"chat_template: {file} is empty; name a Jinja file")
    tokenizer.chat_template = text
