"""A model is what its folder says: no weight is drawn at random on loading, and what is written can be read back.

transformers only reports what it misses, and keeps, of weights it has unpacked on loading (MXFP4, FP8), the wish to
pack them again on saving.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import cached_file

from seekr_cl.errors import DataError, ModelError, OutputError
from seekr_cl.system import reading

MOST_LAYERS = 10_000
"""The deepest language models have some hundred; a config that claims a million would be built for hours."""
_LARGEST_FILE = 1 << 30
_CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_SHOWN = 3
_PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def check_folder(folder: Path) -> None:
    """Makes sure that a model folder's JSON can be read before transformers reads it.

    Raises:
        ModelError: for a pipe, a device, a file that is too large or a model that is too deep.
    """
    if not folder.is_dir():
        return
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix == ".json" or path.name in ("tokenizer.model", "chat_template.jinja", "merges.txt"):
                with reading.open_plain(path) as file:
                    if file.seek(0, 2) > _LARGEST_FILE:
                        raise ModelError(f"{path}: larger than {_LARGEST_FILE} bytes; restore it from a copy")
                if path.name in _CONFIGS:
                    _check_depth(reading.read_json(path, bounded=False), path)
    except OSError as error:
        where = error.filename or folder
        raise ModelError(f"{where}: cannot be read ({error.strerror}); restore the model's folder") from error
    except ValueError as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: not readable as JSON ({error}); restore the model's folder") from error


def _check_depth(content: Any, path: Path) -> None:
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        number = value if type(value) is int else len(value) if isinstance(value, list) else 0
        if str(key).endswith(("layers", "layer", "layer_types")) and number > MOST_LAYERS:
            raise ModelError(f"{path}: {key} is {number}, no language model has more than {MOST_LAYERS}; fix it")
        _check_depth(value, path)


def require_weights(name: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuses a model of which weights were missing and drawn at random.

    Args:
        name: the model's folder or Hub name.
        model: as it was loaded.
        info: what ``from_pretrained`` says of the loading; weights tied to others do not count as missing there.

    Raises:
        ModelError: naming the weights, and the prefix that keeps them from being found if that is it.
    """
    parameters = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    # Other buffers are made anew from the config; a router's correction is learned.
    missing = sorted(
        key for key in info["missing_keys"] if key in parameters or key.endswith(("weight", "correction_bias"))
    )
    if not missing:
        return
    prefix = _prefix(missing, info["unexpected_keys"])
    if prefix is not None:
        what = " (it was saved from a compiled model)" if prefix.endswith("_orig_mod.") else ""
        raise ModelError(
            f"{name}: the names of its weights begin with '{prefix}'{what}, so {_listed(missing)} would be random; "
            f"take '{prefix}' off their names, or save the model anew from inside its wrapper"
        )
    raise ModelError(
        f"{name}: lacks {_listed(missing)}, which would be random; restore the model's weights from a copy"
    )


def _prefix(missing: list[str], unexpected: Iterable[str]) -> str | None:
    """What stands before the names of the missing weights, if they are there under longer names."""
    for key in unexpected:
        for name in missing:
            if key.endswith(f".{name}"):
                return key.removesuffix(name)
    # Names of an inner module may have been wrapped, not only the whole model's.
    inner = {key.replace("_orig_mod.", ""): key for key in unexpected if "_orig_mod." in key}
    return "_orig_mod." if inner.keys() & set(missing) else None


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{len(names)} of its weights ({shown}{', ...' if len(names) > _SHOWN else ''})"


def write_as_loaded(model: PreTrainedModel) -> None:
    """Lets ``save_pretrained`` write weights that were unpacked on loading as they are now."""
    done = getattr(model, "_weight_conversions", None)
    if not done or getattr(model, "is_quantized", False):
        return
    plain = {_patterns(one): one for one in get_model_conversion_mapping(model)}
    by_target = {targets: one for (_, targets), one in plain.items()}
    kept = [one if _patterns(one) in plain else by_target.get(_patterns(one)[1]) for one in done]
    vars(model)["_weight_conversions"] = [one for one in kept if one is not None]


def _patterns(conversion: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    def names(value: Any) -> tuple[str, ...]:
        return (value,) if isinstance(value, str) else tuple(map(str, value))

    return names(conversion.source_patterns), names(conversion.target_patterns)


def require_written(
    folder: Path, model: PreTrainedModel, tensors: dict[str, Tensor] | None = None, name: str | None = None
) -> None:
    """Makes sure that the folder just written gives all of the model's weights when it is loaded.

    Args:
        folder: under its temporary name.
        model: what was written; not one with adapters.
        tensors: its state, if the model holds only its shards of it.
        name: what messages call the folder.

    Raises:
        OutputError: naming the weights that would be missing.
    """
    try:
        written = _written_names(folder)
        expected = model.state_dict() if tensors is None else tensors
        if getattr(model, "_weight_conversions", None) or not written <= expected.keys():
            # Under other names than the model's own; only loading can tell, which needs no storage.
            missing = _missing_of(folder, model)
        else:
            held = {_place(expected[key]) for key in written}
            missing = [key for key in expected if key not in written and _place(expected[key]) not in held]
    except (OSError, SafetensorError, ValueError) as error:
        raise OutputError(f"{name or folder}: what was written cannot be read back ({error})") from error
    if missing:
        raise OutputError(
            f"{name or folder}: {_listed(sorted(missing))} cannot be read back as transformers has written them; "
            "update transformers, or begin with a model whose weights are not packed"
        )


def _place(tensor: Any) -> tuple[Any, ...]:
    # Tied weights are written once; those of a sharded model have no storage to compare.
    return (tensor.data_ptr(), tensor.shape) if tensor.device.type != "meta" else ("meta",)


def _written_names(folder: Path) -> set[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def _missing_of(folder: Path, model: PreTrainedModel) -> list[str]:
    loaded, info = _from_pretrained(type(model), folder)
    names = {key for key, _ in loaded.named_parameters(remove_duplicate=False)}
    return [key for key in info["missing_keys"] if key in names]


def _from_pretrained(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder, device_map="meta", output_loading_info=True)


def token_rows(model: PreTrainedModel) -> int:
    """How many tokens a model has a vector for."""
    embedding: Any = model.get_input_embeddings()
    # Of a module that is cut up the number is known where its weight is not.
    return int(getattr(embedding, "num_embeddings", 0) or embedding.weight.shape[0])


def require_rows(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that has tokens which the model has no vector for.

    Special tokens that only other uses of the tokenizer need (an image's place) may be beyond; texts that hold them
    are refused by ``require_known``.

    Raises:
        ModelError: saying how many tokens and rows there are.
    """
    rows = token_rows(model)
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return
    special = {str(token) for token in tokenizer.all_special_tokens}
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if special & beyond.keys() or beyond.keys() - added:
        token = min(beyond, key=lambda token: beyond[token])
        raise ModelError(
            f"{name}: the tokenizer has {max(beyond.values()) + 1} tokens, the model {rows} rows (first without one: "
            f"{token!r}); call model.resize_token_embeddings({max(beyond.values()) + 1}) and save it"
        )


def require_known(ids: Iterable[int], rows: int, where: str) -> None:
    """Refuses a text of tokens that the model has no vector for.

    Raises:
        DataError: naming the token.
    """
    highest = max(ids, default=0)
    if highest >= rows:
        raise DataError(
            f"{where}: holds token {highest}, the model has {rows} rows; call model.resize_token_embeddings("
            f"{highest + 1}) and save it, or take the token out of the text"
        )


def require_same_rows(model: Any, file: Path) -> None:
    """Refuses an adapter whose vocabulary has grown beyond the base model's.

    Args:
        model: the base.
        file: the adapter's weights.

    Raises:
        ModelError: naming both sizes and the way out.
    """
    rows = token_rows(model)
    with safe_open(file, "pt") as held:
        for key in held.keys():  # noqa: SIM118 - safe_open is no mapping
            if ("embed_tokens" in key or "lm_head" in key) and key.endswith("weight") and "lora_" not in key:
                own = int(held.get_slice(key).get_shape()[0])
                if own != rows:
                    raise ModelError(
                        f"{file}: {key} has {own} rows, the base model {rows}: the adapter was trained with another "
                        f"vocabulary; call base.resize_token_embeddings({own}), put the adapter on, merge and save it "
                        "with its tokenizer, and name that folder"
                    )


def processor_files(name: str, config: Any) -> dict[str, str]:
    """The files of a vision or audio model's processor, which no tokenizer writes again.

    Args:
        name: the model's folder or Hub name.
        config: the model's.

    Returns:
        Their content by name; nothing for a model of text alone.
    """
    if not any(hasattr(config, f"{kind}_config") for kind in ("vision", "audio")):
        return {}
    found = {one: cached_file(name, one, _raise_exceptions_for_missing_entries=False) for one in _PROCESSOR}
    return {one: Path(place).read_text(encoding="utf-8") for one, place in found.items() if place}
