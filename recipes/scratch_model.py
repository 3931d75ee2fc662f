"""An untrained model of the demo's architecture with another model's tokenizer.

    python recipes/scratch_model.py --tokenizer ../shared/data/tiny_lm/stories260K --output /tmp/scratch

The demo's own tokenizer knows lower-case letters only; real rows need one that can write anything.
"""

import argparse
from importlib.resources import files
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, set_seed

CONTEXT = 512


def main() -> None:
    """Builds and saves the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="model folder to take the tokenizer from")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    config = AutoConfig.from_pretrained(str(files("seekr_cl.demo") / "model"))
    config.vocab_size = len(tokenizer)
    config.max_position_embeddings = CONTEXT
    for key in ("bos", "eos", "pad"):
        setattr(config, f"{key}_token_id", getattr(tokenizer, f"{key}_token_id"))
    set_seed(given.seed)
    LlamaForCausalLM(config).float().save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)


if __name__ == "__main__":
    main()
