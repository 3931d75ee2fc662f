"""Loading a model and tokenizer, and writing a model folder that either exists whole or not at all."""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from seekr_cl.errors import ModelError, OutputError
from seekr_cl.faults import fault_point
from seekr_cl.memory.files import file_above, sync_folder


def load_model(
    source: str | os.PathLike[str], dtype: str = "float32", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, from a folder or from the Hub.

    Raises:
        ModelError: if it is not there or cannot be loaded.
    """
    name = os.fspath(source)
    path = Path(name)
    if path.exists() and not (path / "config.json").is_file():
        raise ModelError(f"{name}: holds no config.json; name a Hugging Face model folder")
    # "owner/name" may be on the Hub, unless the first part is a folder here and the second a slip.
    if not path.exists() and (name.count("/") != 1 or name.startswith((".", "/", "~")) or path.parent.is_dir()):
        raise ModelError(f"{name}: no such model folder")
    torch_dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch_dtype, trust_remote_code=trust_remote_code)
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name}: cannot be loaded as a causal language model ({first_line})") from error
    return model, tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token to pad with; the attention mask hides it, so the end-of-text token serves where none is set."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def require_free(path: Path) -> None:
    """Refuses an output folder that already holds something.

    Raises:
        OutputError: if it is a file or a folder that is not empty.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise OutputError(f"{path}: already exists and is not empty; choose another --output or remove it first")
    refuse_unwritable(path)


def refuse_unwritable(path: Path) -> None:
    """Refuses a folder that cannot be made: below a file, or where nobody may write.

    Raises:
        OutputError: naming what is in the way.
    """
    above = file_above(path)
    if above is not None:
        raise OutputError(f"{path}: {above} is a file, not a folder; choose another folder")
    standing = next(above for above in [path, *path.absolute().parents] if above.is_dir())
    if not os.access(standing, os.W_OK):
        raise OutputError(f"{path}: {standing} cannot be written to; choose another folder or change its permissions")


def save_model(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, extra: Any = None) -> None:
    """Writes a model folder under a temporary name and renames it into place.

    Args:
        path: the folder; must be missing or empty.
        model: saved as safetensors.
        tokenizer: saved beside it.
        extra: called with the temporary folder to put more files in.

    Raises:
        OutputError: if it cannot be written; nothing is left behind.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if extra is not None:
            extra(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                handle = os.open(file, os.O_RDONLY)
                os.fsync(handle)
                os.close(handle)
        fault_point("model.written")
        if path.is_dir():
            path.rmdir()
        os.replace(temporary, path)
        fault_point("model.renamed")
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        # safetensors has an error of its own for a full disk.
        raise OutputError(
            f"{path}: the model cannot be written ({error}); free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
