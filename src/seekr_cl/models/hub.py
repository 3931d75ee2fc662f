"""Handing a model folder over to the Hugging Face Hub: what of it goes there, and sending it.

Only files that a model consists of are sent, by their names: a memory, checkpoints, an optimizer's state, data and
whatever else lies in the folder stay. Weights are sent before the commit that makes them visible, and the Hub knows
those that it has: a push that was broken off goes on when it is made again.
"""

import ast
import fnmatch
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from seekr_cl.errors import ConfigError, ModelError, OutputError, first_line
from seekr_cl.models.card import is_repo_name
from seekr_cl.models.peft_adapters import CONFIG, is_adapter
from seekr_cl.models.whole import check_folder
from seekr_cl.system import reading

_MODEL = (
    *("README.md", "LICENSE*", "NOTICE*", "USE_POLICY*", "config.json", "generation_config.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "*.tiktoken", "tekken.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("seekr_adapter.json", "seekr_merged.json"),
)
_ADAPTER = (
    *("adapter_config.json", "adapter_model.safetensors"),
    *("seekr_adapters.json", "seekr_method.json", "seekr_method.safetensors"),
)
_NAME_CODE = (
    *("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"),
    "video_preprocessor_config.json",
)
"""Files whose ``auto_map`` names the modules of a model that brings its own code; no other script is sent."""
_TEMPLATES = ("additional_chat_templates", "chat_templates")


@dataclass(frozen=True, slots=True)
class Parcel:
    """What of a folder is sent.

    Attributes:
        folder: the model's.
        files: names in it, and on the Hub.
        left_out: names of files and folders that stay, each with the reason.
        instead: by name, what is sent in place of an adapter's config that names a base model of this machine alone.
    """

    folder: Path
    files: list[str]
    left_out: list[tuple[str, str]]
    instead: dict[str, bytes]

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return len(self.instead[name]) if name in self.instead else (self.folder / name).stat().st_size


def parcel_of(folder: Path, base: str | None = None) -> Parcel:
    """What of a model folder is to be sent.

    Args:
        folder: the model's, or an adapter's.
        base: name on the Hub of an adapter's base model, in place of the path that its config has.

    Raises:
        ModelError: if it is no model folder, or not whole.
        ConfigError: if an adapter's base is a folder here and ``base`` does not say what it is on the Hub.
    """
    adapter = is_adapter(folder)
    if not adapter and not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: {_what_else(folder)}")
    if not adapter:
        check_folder(folder)
    files, left_out = list[str](), list[tuple[str, str]]()
    modules = set[str]() if adapter else _modules(folder)
    for path in sorted(folder.iterdir()):
        name = path.name
        if path.is_symlink():
            left_out.append((name, "is a link"))
        elif path.is_dir():
            inner = _inner(path)
            files += [f"{name}/{one}" for one in inner]
            if not inner:
                left_out.append((f"{name}/", "is not part of a model"))
        elif _matches(name, (*_MODEL, *_ADAPTER)) or name in modules:
            files.append(name)
        elif name.endswith(".py"):
            left_out.append((name, "is a script that no auto_map names"))
        else:
            left_out.append((name, "is not part of a model"))
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights:
        raise ModelError(f"{folder}: has no weights as safetensors files of its own; save the model there first")
    if base is not None and not adapter:
        raise ConfigError("--base: is for an adapter, and this is a whole model; leave it out")
    configs = {name: _config_with(folder / name, base) for name in files if Path(name).name == CONFIG and adapter}
    return Parcel(folder, files, left_out, {name: content for name, content in configs.items() if content is not None})


def _what_else(folder: Path) -> str:
    if (folder / "manifest.json").is_file():
        return "is a replay memory, which is not handed over: it holds texts of the training data; name a model folder"
    if (folder / "models").is_dir():
        names = sorted(path.name for path in (folder / "models").iterdir() if (path / "config.json").is_file())
        return f"is a run; name one of its models, such as {folder / 'models' / (names or ['NAME'])[-1]}"
    return "holds no config.json and no adapter_config.json; name a model folder"


def _inner(folder: Path) -> list[str]:
    """Files of a folder within a model's: another adapter, or chat templates."""
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()]
    if folder.name in _TEMPLATES:
        return [name for name in names if name.endswith(".jinja")]
    return [name for name in names if _matches(name, _ADAPTER)] if CONFIG in names else []


def _modules(folder: Path) -> set[str]:
    """Names of the Python files that a model's configs name in their ``auto_map``, and of those that these import.

    Raises:
        ModelError: if a config or one of these files cannot be read.
    """
    found, wanted = set[str](), list[str]()
    for name in _NAME_CODE:
        path = folder / name
        if path.is_file() and not path.is_symlink():
            wanted += _named_code(path)
    while wanted:
        name = wanted.pop()
        path = folder / name
        if name not in found and path.is_file() and not path.is_symlink():
            found.add(name)
            wanted += _imported(path)
    return found


def _named_code(path: Path) -> list[str]:
    try:
        content = reading.read_json(path, bounded=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error)}); save the model again") from error
    named = content.get("auto_map") if isinstance(content, dict) else None
    values = list(named.values()) if isinstance(named, dict) else []
    classes = [one for value in values for one in (value if isinstance(value, list) else [value])]
    # "OWNER/NAME--module.Class" is code of another repository, "module.Class" of this one.
    return [f"{one.split('.')[0]}.py" for one in classes if isinstance(one, str) and "--" not in one and "/" not in one]


def _imported(path: Path) -> list[str]:
    """Files beside a module that it imports: those that transformers fetches along with it."""
    try:
        tree = ast.parse(reading.read_bytes(path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"{path}: auto_map needs it, and it cannot be parsed ({first_line(error)}); fix it") from error
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return [
        f"{name.split('.')[0]}.py"
        for node in imports
        for name in ([node.module] if node.module else [one.name for one in node.names])
    ]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return not name.startswith(".") and any(fnmatch.fnmatchcase(name, one) for one in patterns)


def _config_with(file: Path, base: str | None) -> bytes | None:
    content = dict(reading.read_json(file))
    named = str(content.get("base_model_name_or_path") or "")
    if base is None:
        if is_repo_name(named) and not Path(named).exists():
            return None
        raise ConfigError(
            f"{file}: the adapter's base model is {named or 'not named'}, a folder that only this machine has; say "
            "what it is on the Hub with --base OWNER/NAME"
        )
    if not is_repo_name(base):
        raise ConfigError(f"--base: {base!r} is not of the form OWNER/NAME")
    return json.dumps(content | {"base_model_name_or_path": base}, indent=2).encode()


def push(parcel: Parcel, repo: str, private: bool, message: str) -> str:
    """Sends a model to the Hub.

    Args:
        parcel: what is sent.
        repo: ``OWNER/NAME``; made if it is not there.
        private: whether only its owner may see it.
        message: of the commit.

    Returns:
        address of the commit.

    Raises:
        ConfigError: if the name, the token or the visibility is not right.
        OutputError: if the Hub or the network refuses; what was sent is known to the Hub when it is sent again.
    """
    check_name(repo)
    endpoint = os.environ.get("HF_ENDPOINT") or None
    if get_token() is None:
        raise ConfigError("push: no token for the Hugging Face Hub; run 'hf auth login', or set HF_TOKEN")
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(endpoint=endpoint, library_name="seekr-cl")
    with _refusals(repo):
        api.create_repo(repo, private=private or None, exist_ok=True, repo_type="model")
        if private and not api.repo_info(repo, repo_type="model").private:
            raise ConfigError(f"--private: {repo} is there already and public; make it private first, or leave it out")
        added = [CommitOperationAdd(name, parcel.instead.get(name, str(parcel.folder / name))) for name in parcel.files]
        return str(api.create_commit(repo, added, commit_message=message, repo_type="model").commit_url)


def check_name(repo: str) -> None:
    """Makes sure that a repository can have a name.

    Raises:
        ConfigError: saying what a name looks like.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r}: cannot be a name on the Hub ({first_line(error)})") from error
    if not is_repo_name(repo):
        raise ConfigError(f"{repo!r}: is not of the form OWNER/NAME")


@contextmanager
def _refusals(repo: str) -> Iterator[None]:
    """What the Hub and the network raise, as one line."""
    again = "run the same command again: what was sent already is not sent twice"
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        said = (error.server_message or first_line(error)).splitlines()[0][:200]
        if status in (401, 403):
            raise ConfigError(
                f"push: the Hub refuses the token for {repo} ({status}: {said}); it needs write access: make one at "
                "https://huggingface.co/settings/tokens and run 'hf auth login'"
            ) from error
        if status is not None and status < 500 and status not in (408, 429):
            raise OutputError(f"push: the Hub refuses {repo} ({status}: {said})") from error
        raise OutputError(f"push: the Hub fails ({status}: {said}); {again}") from error
    except OfflineModeIsEnabled as error:
        raise ConfigError("push: HF_HUB_OFFLINE is set; unset it to reach the Hub") from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise OutputError(f"push: the Hub cannot be reached ({first_line(error)}); {again}") from error
    except (ConfigError, OutputError):
        raise
    except (RuntimeError, ValueError) as error:
        # A README whose head the Hub does not take, or an upload's own words.
        raise OutputError(f"push: {first_line(error)[:300]}; {again}") from error
