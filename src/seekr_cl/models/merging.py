"""A merged model keeps where it comes from, so that the memory of the adapter takes it for the model it is."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from seekr_cl.memory import model_hash
from seekr_cl.system.files import file_hash, write_json

ORIGIN = "seekr_adapter.json"
"""In an adapter's folder: the hash by which its memory knows the model, and of which files it speaks."""

MERGED = "seekr_merged.json"
"""In a merged model's folder: the hash of the model that it is equal to, and of which files that is said."""


def dtype_of(model: Any) -> str:
    """The type of a model's own weights, those of adapters aside, such as ``float32``."""
    own = model.get_base_model() if hasattr(model, "peft_config") else model
    return str(own.dtype).removeprefix("torch.")


def note_origin(folder: Path, model: Any, sha256: str, quantization: str | None) -> None:
    """Writes ``ORIGIN`` into the folder of a model with adapters; a plain model needs none.

    Args:
        folder: holds the adapter's files already.
        model: what was written there.
        sha256: its hash.
        quantization: of the base model's weights, if they were held in another form.
    """
    if not hasattr(model, "peft_config"):
        return
    content = {"model_sha256": sha256, "dtype": dtype_of(model), "quantization": quantization}
    write_json(folder / ORIGIN, content | {"files": _hashes(folder)})


def origin_of(folder: Path, model: Any) -> str | None:
    """The hash by which a memory knows the model of an adapter's folder; ``None`` if it is not known any more.

    Args:
        folder: the adapter's.
        model: as it was loaded from there.
    """
    content = _read(folder / ORIGIN)
    if content is None or content["files"] != _hashes(folder):
        return None
    # In another type the hash is another one, whatever the weights are.
    if content.get("quantization") is None and content.get("dtype") == dtype_of(model):
        return content["model_sha256"] if model_hash(model) == content["model_sha256"] else None
    return str(content["model_sha256"])


def note_merged(folder: Path, sha256: str | None) -> None:
    """Writes ``MERGED`` into the folder of a merged model that holds its files already."""
    if sha256 is not None:
        write_json(folder / MERGED, {"model_sha256": sha256, "files": _hashes(folder)})


def merged_from(source: Any) -> str | None:
    """Hash of the model that a merged model's folder is equal to; ``None`` for any other, or if it was changed."""
    folder = Path(source)
    content = _read(folder / MERGED)
    return None if content is None or content["files"] != _hashes(folder) else str(content["model_sha256"])


def _hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_hash(path) for path in sorted(folder.rglob("*.safetensors"))}


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, Mapping) and isinstance(content.get("model_sha256"), str) and "files" in content:
            return dict(content)
    return None
