"""Loading a model and tokenizer, and writing a model folder that either exists whole or not at all."""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import patch_environment
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging as transformers_logging

from seekr_cl.distributed.dtensor import state_of
from seekr_cl.errors import ModelError, OutputError, first_line
from seekr_cl.models.bitsandbytes import keep_as_loaded, loading_options
from seekr_cl.models.load_report import LoadReport, held_back
from seekr_cl.models.peft_adapters import base_of, is_adapter, load_adapter, own_state, refuse_mixed, save_adapter
from seekr_cl.models.whole import (
    check_folder,
    processor_files,
    require_rows,
    require_weights,
    require_written,
    write_as_loaded,
)
from seekr_cl.os_errors import named
from seekr_cl.system.fault_points import fault_point
from seekr_cl.system.files import file_above, sync_folder
from seekr_cl.system.removal import give_away, list_content, make_folder, remove_made, unfinished_folder


@named(ModelError)
def load_model(
    source: str | os.PathLike[str],
    dtype: str = "float32",
    trust_remote_code: bool = False,
    quantization: str | None = None,
    empty: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, from a folder or from the Hub.

    Args:
        source: a model folder, an adapter folder (the base model it names is loaded with it), or a Hub name.
        dtype: of the weights; those of adapters stay as they were saved.
        trust_remote_code: run code that comes with the model.
        quantization: of the base model's weights, one of ``bitsandbytes.FORMS``; ``None`` leaves them as they are.
        empty: without its weights, on the meta device.

    Raises:
        ModelError: if it is not there or cannot be loaded.
        ConfigError: if what the quantization needs is not installed.
    """
    name = os.fspath(source)
    path = Path(name)
    refuse_mixed(path)
    if is_adapter(path):
        model, tokenizer = load_model(base_of(path), dtype, trust_remote_code, quantization, empty)
        model = load_adapter(model, path)  # type: ignore[assignment]
        tokenizer = _own_tokenizer(path, tokenizer, trust_remote_code)
        require_rows(name, model, tokenizer)
        return model, tokenizer
    if path.exists() and not (path / "config.json").is_file():
        raise ModelError(f"{name}: holds no config.json; name a Hugging Face model folder")
    # "owner/name" may be on the Hub, unless the first part is a folder here and the second a slip.
    if not path.exists() and (name.count("/") != 1 or name.startswith((".", "/", "~")) or path.parent.is_dir()):
        raise ModelError(f"{name}: no such model folder")
    check_folder(path)
    torch_dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    options = loading_options(quantization, dtype) | ({"device_map": "meta"} if empty else {})
    transformers_logging.disable_progress_bar()
    # It is looked at before it is trained, and DeepSpeed cuts it up only then.
    unset_hf_deepspeed_config()
    report = LoadReport()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        # What transformers would leave out in all processes but one is for this library to say.
        with patch_environment(FSDP_CPU_RAM_EFFICIENT_LOADING="false"), held_back() as report:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name, dtype=torch_dtype, trust_remote_code=trust_remote_code, output_loading_info=True, **options
            )
    except Exception as error:
        reason = report.reason() or first_line(error)
        raise ModelError(f"{name}: cannot be loaded as a causal language model ({reason})") from error
    model, info = loaded
    require_weights(name, model, info)
    report.show()
    require_rows(name, model, tokenizer)
    write_as_loaded(model)
    model.processor_files = processor_files(name, model.config)
    keep_as_loaded(model, quantization)
    return model, tokenizer


def load_tokenizer(source: str | os.PathLike[str], trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer with its chat template, from a folder that need not hold a model, or from the Hub.

    Raises:
        ModelError: if it is not there or cannot be loaded.
    """
    name = os.fspath(source)
    path = Path(name)
    if is_adapter(path) and not (path / "tokenizer_config.json").is_file():
        return load_tokenizer(base_of(path), trust_remote_code)
    if not path.exists() and (name.count("/") != 1 or name.startswith((".", "/", "~")) or path.parent.is_dir()):
        raise ModelError(f"{name}: no such model folder")
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"{name}: its tokenizer cannot be loaded ({first_line(error)})") from error


def _own_tokenizer(folder: Path, base: PreTrainedTokenizerBase, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """An adapter folder's tokenizer; the base model's where it has none, as other tools write it."""
    if not (folder / "tokenizer_config.json").is_file():
        return base
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"{folder}: its tokenizer cannot be loaded ({first_line(error)})") from error


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


def written_state(model: Any) -> dict[str, Tensor]:
    """What ``save_model`` writes of a model: all of its state, or its adapters'."""
    return own_state(model) if hasattr(model, "peft_config") else state_of(model)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        # The tokenizers' library has no kind of error for a full disk.
        if "(os error " not in str(error):
            raise
        raise OSError(str(error)) from error


@named()
def save_model(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    extra: Any = None,
    tensors: dict[str, Tensor] | None = None,
    provisional: bool = False,
) -> None:
    """Writes a model folder under a temporary name and renames it into place.

    Args:
        path: the folder; must be missing or empty.
        model: saved as safetensors; of one with adapters, these alone.
        tokenizer: saved beside it.
        extra: called with the temporary folder to put more files in.
        tensors: all of ``written_state``, if the model holds only its shards of it.
        provisional: it keeps the marker, by which ``removal.remove_made`` can take it away again, until the caller
            gives it away.

    Raises:
        OutputError: if it cannot be written; nothing is left behind.
    """
    if path.is_dir():
        # A link to an empty folder: the folder is replaced, not the link.
        path = path.resolve()
    temporary = unfinished_folder(path)
    try:
        make_folder(temporary)
        if hasattr(model, "peft_config"):
            save_adapter(model, temporary, tensors)  # type: ignore[arg-type]
        else:
            model.save_pretrained(temporary, state_dict=tensors)
            require_written(temporary, model, tensors, str(path))
        _save_tokenizer(tokenizer, temporary)
        if not hasattr(model, "peft_config"):
            for name, content in getattr(model, "processor_files", {}).items():
                (temporary / name).write_text(content, encoding="utf-8")
        if extra is not None:
            extra(temporary)
        if provisional:
            list_content(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                handle = os.open(file, os.O_RDONLY)
                os.fsync(handle)
                os.close(handle)
        fault_point("model.written")
        # An empty folder that is there gives way to it, one that is not stays.
        os.replace(temporary, path)
        if not provisional:
            give_away(path)
        fault_point("model.renamed")
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        # safetensors has an error of its own for a full disk.
        raise OutputError(
            f"{path}: the model cannot be written ({error}); free space or choose another folder"
        ) from error
    finally:
        remove_made(temporary)
