"""Numbers out of range, and what must be found before a run's folder or a long training begins."""

from bad_case import GOOD, Case, damaged_run, entries, learn, resumed, setting, stream
from cli_world import save_model, write


def slip(world, folder):
    save_model(folder / "models" / "tiny")
    return "models/tine"


def too_long(world, folder):
    data = write(folder / "data.json", [GOOD, {"prompt": "a", "answer": "b" * 60}])
    return entries(world, {"data": str(data), "test": str(world.first / "test.json"), "name": "b", "max_new_tokens": 4})


CASES = [
    setting("max_length=0", "max_length: 0", "at least 1"),
    setting("learning_rate=-1", "learning_rate: -1", "at least 0"),
    setting("num_train_epochs=0", "num_train_epochs", "above 0"),
    setting("per_device_train_batch_size=0", "per_device_train_batch_size: 0", "at least 1"),
    setting("gradient_accumulation_steps=0", "gradient_accumulation_steps: 0", "at least 1"),
    setting("adam_beta1=2", "adam_beta1: 2", "between 0 and 1"),
    setting("accelerator_config=nowhere.json", "training settings", "nowhere.json"),
    setting("max_length=999", "max_length: 999", "using 48", runs=True),
    learn(
        "memory inside a file",
        "test.json",
        "is a file",
        "another folder",
        memory=lambda w, f: w.first / "test.json" / "m",
    ),
    learn(
        "output inside a file",
        "test.json",
        "is a file",
        "another folder",
        output=lambda w, f: w.first / "test.json" / "o",
    ),
    learn("a slip in a model's path", "models/tine", "no such model folder", model=slip),
    stream("stream without its model", "nowhere", "no such model folder", model="./nowhere"),
    stream("stream with a completion above the context", "data.json row 2", "max_length 48", tasks=too_long),
    stream(
        "stream with answers above the context",
        "48",
        "lower max_new_tokens",
        tasks=lambda w, f: entries(w, {"data": str(w.second), "max_new_tokens": 48}),
    ),
    stream(
        "a stream's prompts that fill the context",
        "second",
        "train.json row 1",
        "task 'second'",
        "44 virtual tokens",
        "context of 48",
        "max_length to at most 4",
        method={"name": "progressive_prompts", "prompt_length": 22},
        replay={},
    ),
    stream(
        "a stream's prompts and answers that fill the context",
        "max_length 6",
        "lower max_new_tokens",
        method={"name": "progressive_prompts", "prompt_length": 21},
        replay={},
        tasks=lambda w, f: entries(w, {"data": str(w.second), "max_new_tokens": 6}),
    ),
    stream(
        "a stream's prompts that leave nothing",
        "48 virtual tokens",
        "make prompts shorter",
        method={"name": "progressive_prompts", "prompt_length": 24},
        replay={},
    ),
    stream(
        "prompts picked from a pool that fill the context",
        "first",
        "train.json row 1",
        "task 'first'",
        "44 virtual tokens",
        "context of 48",
        "max_length to at most 4",
        "method.top",
        method={"name": "l2p", "prompt_length": 22, "top": 2},
        replay={},
    ),
    stream(
        "a prompt of PEFT's and answers that fill the context",
        "max_length 6",
        "lower max_new_tokens",
        method="seqft",
        replay={},
        peft={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 42},
        tasks=lambda w, f: entries(w, {"data": str(w.second), "max_new_tokens": 6}),
    ),
    stream(
        "unknown metric of a probe",
        "'p'",
        "'foo' is unknown",
        "exact_match",
        probes=lambda w, f: [{"data": str(w.first), "name": "p", "metric": "foo"}],
    ),
    Case("resumed with another learning rate", ("run.json", "another"), resumed("learning_rate=0.1")),
    Case("resumed from a damaged ledger", ("run.json", "damaged", "another --output"), damaged_run),
]
