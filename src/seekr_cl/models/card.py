"""Model cards: a README.md that says what a model folder is, told from one that its owner wrote or changed.

A card ends with a comment that has the hash of all before it. One that has another hash, or none, is somebody's own and
is never written over. Whatever comes from data, names or paths is escaped: it is text in the card and nothing else.
"""

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.repocard import ModelCard

from seekr_cl.models.peft_adapters import base_of, is_adapter
from seekr_cl.system import reading
from seekr_cl.system.files import write_bytes
from seekr_cl.system.removal import relist

CARD = "README.md"
TAG = "seekr-cl"
_LARGEST = 1 << 20
_END = re.compile(r"\n<!-- seekr-cl card, sha256 of all above: ([0-9a-f]{64}) -->\n\Z")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENSE = ("license", "license_name", "license_link")
# What moves a cursor, turns text around or ends a line.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_MARKED = re.compile(r"[\\`*_{}\[\]<>()#!|~$&@:]|(?<=www)\.")


@dataclass(frozen=True, slots=True)
class Base:
    """What a model was made of.

    Attributes:
        shown: name for a person: that on the Hub, or the folder's own without those above it.
        repo: its name on the Hub; ``None`` if it is not known.
        license: ``license`` and what goes with it, as its own card has them; empty if it says none.
        language: as its own card has it.
    """

    shown: str
    repo: str | None
    license: dict[str, Any]
    language: Any = None


def is_repo_name(name: str) -> bool:
    """Whether a name has the form ``OWNER/NAME`` of the Hub."""
    return _REPO.fullmatch(name) is not None


def escaped(text: Any, most: int = 200) -> str:
    """Text that Markdown and HTML show as it is: in one line, every sign that means something with a backslash."""
    plain = _CONTROL.sub(" ", str(text))
    short = plain if len(plain) <= most else f"{plain[: most - 3]}..."
    return _MARKED.sub(lambda found: f"\\{found.group()}", " ".join(short.split()))


def base_of_model(source: str) -> Base:
    """The model that another was made of, by its path or name; nothing is downloaded but its card.

    Args:
        source: folder or Hub name. Of an adapter's folder, its base is meant; of a folder that was written here, the
            model that it was made of in the end.
    """
    folder = Path(source)
    with suppress(Exception):
        if is_adapter(folder):
            return base_of_model(base_of(folder))
    if folder.is_dir():
        data = _data(folder / CARD)
        name = os.path.basename(os.path.abspath(source))
        if data is None:
            return Base(name, None, {})
        ours = TAG in (data.get("tags") or [])
        repo = data.get("base_model") if ours else None
        repo = repo if isinstance(repo, str) and _REPO.fullmatch(repo) else None
        shown = data.get("base_model_name") if ours else None
        return Base(repo or str(shown or name), repo, _license(data), data.get("language"))
    if not _REPO.fullmatch(source):
        return Base(os.path.basename(source) or "a loaded model", None, {})
    data = _data(_hub_card(source)) or {}
    return Base(source, source, _license(data), data.get("language"))


def _license(data: dict[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in _LICENSE if isinstance(data.get(key), str)}


def _hub_card(repo: str) -> Path | None:
    """A model's card from the cache or the Hub; a network that does not answer soon is done without."""
    with suppress(Exception):
        found = try_to_load_from_cache(repo, CARD)
        if isinstance(found, str):
            return Path(found)
        if not constants.HF_HUB_OFFLINE:
            return Path(hf_hub_download(repo, CARD, etag_timeout=5))
    return None


def _data(path: Path | None) -> dict[str, Any] | None:
    """The YAML head of a card; ``None`` if there is no such file or head."""
    # A stranger's file: whatever is wrong with it, it only says nothing.
    with suppress(Exception):
        if path is not None and path.is_file():
            content = reading.read_text(path.resolve(), _LARGEST)
            return dict(ModelCard(content, ignore_metadata_errors=True).data.to_dict())
    return None


def card_text(data: ModelCardData, body: str) -> str:
    """A whole card with its last line."""
    text = f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n"
    return f"{text}\n<!-- seekr-cl card, sha256 of all above: {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def own_card(folder: Path) -> str | None:
    """The card of a folder, without its last line, if it was written here and is unchanged; else ``None``."""
    path = folder / CARD
    with suppress(OSError, ValueError):
        if path.is_symlink() or not path.is_file():
            return None
        text = reading.read_text(path, _LARGEST)
        end = _END.search(text)
        if end and hashlib.sha256(text[: end.start()].encode()).hexdigest() == end[1]:
            return text[: end.start()]
    return None


def split_card(text: str) -> tuple[ModelCardData, str]:
    """Head and body of ``own_card``."""
    card = ModelCard(text)
    return ModelCardData(**card.data.to_dict()), card.text


def write_card(folder: Path, text: str) -> bool:
    """Writes a card where there is none or one of ours.

    Returns:
        Whether it lies there now; ``False`` where the folder has a README of its owner's.

    Raises:
        OutputError: if it cannot be written.
    """
    path = folder / CARD
    if os.path.lexists(path) and own_card(folder) is None:
        return False
    content = text.encode("utf-8")
    if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
        write_bytes(path, content)
        relist(folder, CARD)
    return True


def section(name: str, content: str) -> str:
    """A part of a card that ``replaced`` finds again."""
    return f"<!-- {name} -->\n{content.strip()}\n<!-- end of {name} -->"


def replaced(body: str, name: str, content: str) -> str:
    """A card's body with another content of a section; unchanged where it has no such section."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    first, last = body.find(begin), body.find(end)
    if first < 0 or last < first:
        return body
    return body[:first] + section(name, content) + body[last + len(end) :]
