"""What this installation and machine can do, and what of it a model can use."""

import platform
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from transformers.utils import is_flash_attn_2_available

from seekr_cl.attention.kernels.routing import OLDEST_TRITON, runs_on
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.errors import ModelError, SeekrError, first_line
from seekr_cl.models.loading import load_tokenizer
from seekr_cl.models.peft_adapters import LORA, is_adapter
from seekr_cl.planning.fit import ROOM, need, place_of
from seekr_cl.planning.shape import ModelShape, adapter_size, read_shape
from seekr_cl.system.machine import disk_free, this_machine
from seekr_cl.system.sizes import size
from seekr_cl.version import __version__

PACKAGE = "seekr-cl"
OPTIONAL = {
    "triton": "attention rows on a GPU by its kernels",
    "bitsandbytes": "quantization: 4bit",
    "liger-kernel": "use_liger_kernel",
    "deepspeed": "DeepSpeed",
    "flash-attn": "flash attention 2",
    "lm-eval": "seekr evaluate --general",
    "vllm": "seekr evaluate --engine vllm",
}
"""Packages that are not required, and what they are for."""
_SHOWN = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "huggingface-hub", "tokenizers")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: ``versions``, ``machine``, ``kernels`` or ``model``.
        name: what.
        state: ``ok``, ``missing`` where an extra is not there, ``no`` where something is not supported, or ``problem``
            where a command would fail.
        detail: what was found, and what to do.
    """

    group: str
    name: str
    state: str
    detail: str


@dataclass(slots=True)
class Diagnosis:
    """All findings, in order."""

    findings: list[Finding] = field(default_factory=list)

    def add(self, group: str, name: str, detail: str, state: str = "ok") -> None:
        """One finding more."""
        self.findings.append(Finding(group, name, state, detail))

    @property
    def problems(self) -> int:
        """How many findings would make a command fail."""
        return sum(one.state == "problem" for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"problems": self.problems, "findings": [asdict(one) for one in self.findings]}


def diagnose(model: str | None, config: SeekrConfig) -> Diagnosis:
    """Looks at versions, machine and kernels, and at a model if one is named.

    Raises:
        ModelError: if the model is not there.
    """
    made = Diagnosis()
    _versions(made)
    _machine(made, config)
    _kernels(made)
    if model is not None:
        _model(made, model, config)
    return made


def _versions(made: Diagnosis) -> None:
    made.add("versions", "python", platform.python_version())
    made.add("versions", PACKAGE, f"{__version__} in {Path(sys.modules['seekr_cl'].__file__ or '').parent}")
    wanted = {}
    for text in _requirements():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            wanted[requirement.name] = requirement
    for name in dict.fromkeys([*_SHOWN, *wanted]):
        needed, found = wanted.get(name), _version(name)
        if found is None:
            made.add("versions", name, f"not installed; pip install '{needed or name}'", "problem")
        elif needed is not None and not needed.specifier.contains(found, prereleases=True):
            made.add("versions", name, f"{found}, needed is {needed.specifier}", "problem")
        elif name in _SHOWN:
            made.add("versions", name, found)
    for name, use in OPTIONAL.items():
        found = _version(name)
        made.add("versions", name, found or f"not installed; it is for {use}", "ok" if found else "missing")


def _requirements() -> list[str]:
    try:
        return metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from its sources
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine(made: Diagnosis, config: SeekrConfig) -> None:
    machine = this_machine(config.use_cpu)
    made.add("machine", "system", f"{platform.platform()}, {torch.get_num_threads()} threads for torch")
    made.add("machine", "device", f"{machine.name}, {size(machine.free)} of {size(machine.memory)} free")
    if machine.kind == "cuda":
        count = torch.cuda.device_count()
        made.add("machine", "GPUs", f"{count}; CUDA {torch.version.cuda}" + ("; see --launch" if count > 1 else ""))
    elif not config.use_cpu:
        made.add("machine", "GPU", "torch sees none; training runs on the CPU", "missing")
    made.add("machine", "bfloat16", "computed in by the device itself" if machine.bf16 else "not on this device",
             "ok" if machine.bf16 else "no")  # fmt: skip
    made.add("machine", "disk", f"{size(disk_free(Path('.')))} free here")


def _kernels(made: Diagnosis) -> None:
    made.add("kernels", "sdpa", "transformers' default attention; its rows are recomputed where they are wanted")
    flash = is_flash_attn_2_available()
    made.add("kernels", "flash attention 2", "there" if flash else "not here", "ok" if flash else "missing")
    if torch.cuda.is_available() and runs_on(torch.device("cuda")):
        made.add("kernels", "row divergence", f"Triton {_version('triton')}")
    else:
        oldest = ".".join(map(str, OLDEST_TRITON))
        made.add("kernels", "row divergence", f"PyTorch tiles; Triton's need a GPU and Triton {oldest}", "missing")


def _model(made: Diagnosis, model: str, config: SeekrConfig) -> None:
    place = place_of(model)
    if not place.exists():
        raise ModelError(f"{model}: no such model folder")
    try:
        shape = read_shape(place)
    except ModelError as error:
        # What has no attention to look at can still be trained by most methods.
        made.add("model", "attention", str(error), "no")
        _tokenizer(made, model, config)
        return
    adapter = is_adapter(Path(model))
    made.add("model", "config", f"{shape.name}, {shape.parameters / 1e6:.1f}M weights, vocabulary {shape.vocabulary}, "
             f"context {shape.context or 'not said'}{', an adapter folder' if adapter else ''}")  # fmt: skip
    _attention(made, shape)
    _tokenizer(made, model, config)
    _liger(made, shape)
    _room(made, model, shape, config)


def _attention(made: Diagnosis, shape: ModelShape) -> None:
    if shape.layers:
        heads = sum(shape.heads.values())
        made.add("model", "attention", f"tapped: {heads} heads in {len(shape.layers)} layers; all methods can be used")
    else:
        made.add("model", "attention", "none that can be tapped: use derpp or replay instead of seekr", "no")


def _tokenizer(made: Diagnosis, model: str, config: SeekrConfig) -> None:
    try:
        tokenizer = load_tokenizer(model, config.trust_remote_code)
    except ModelError as error:
        made.add("model", "tokenizer", str(error), "problem")
        return
    pad = tokenizer.pad_token or f"none, {tokenizer.eos_token} is used"
    made.add("model", "tokenizer", f"{type(tokenizer).__name__}, end of text {tokenizer.eos_token}, padding {pad}")
    has = tokenizer.chat_template is not None
    detail = (
        "there; 'seekr inspect' shows what of it is learned" if has else "none: conversations need chat_template=FILE"
    )
    made.add("model", "chat template", detail, "ok" if has else "no")


def _liger(made: Diagnosis, shape: ModelShape) -> None:
    if find_spec("liger_kernel") is None:
        return
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except Exception as error:  # it asks for Triton's driver, which raises what it likes
        made.add("model", "Liger", f"cannot be imported ({first_line(error)})", "missing")
        return
    has = shape.name in MODEL_TYPE_TO_APPLY_LIGER_FN
    made.add("model", "Liger", "has kernels for it" if has else f"has none for '{shape.name}'", "ok" if has else "no")


def _room(made: Diagnosis, model: str, shape: ModelShape, config: SeekrConfig) -> None:
    machine = this_machine(config.use_cpu)
    tokens = min(1024, shape.context or 1024)
    own = is_adapter(Path(model))
    ways: list[tuple[str, int | None]] = [] if own else [("all weights", None)]
    try:
        ways.append(("its adapter" if own else "peft=lora", adapter_size(model, None if own else LORA)))
    except SeekrError as error:
        made.add("model", "peft=lora", str(error), "no")
    for name, adapter in ways:
        if name != "all weights" and adapter is None:
            continue
        batch = config.per_device_train_batch_size
        total = need(shape, config, adapter, batch, tokens, machine.bf16).total
        fits = total <= ROOM * machine.memory
        text = f"about {size(total)} of {size(machine.memory)} in batches of {batch} x {tokens}"
        made.add("model", f"training, {name}", text, "ok" if fits else "no")
