"""Data, streams, models and evaluations that cannot be used."""

from bad_case import GOOD, Case, data, entries, evaluated, learn, stream, without
from cli_world import write

SMALL = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}


def planned(config: object, *options: str):
    """A plan for a config, or for a folder that is not there."""

    def arguments(world, folder):
        model = folder / "nowhere" if config == "nowhere" else write(folder / "config.json", config)
        return ["plan", "--model", model, *options]

    return arguments


def launched(config: object):
    """A run launched with such a config, or with a file that is not there."""

    def arguments(world, folder):
        file = folder / config if config == "nowhere.yaml" else write(folder / "two.yaml", config)
        return [*world.learn(folder), "--launch", file]

    return arguments


CASES = [
    # Data
    learn(
        "no such file",
        "wher.json",
        "no such file",
        "did you mean 'where.json'",
        task=lambda w, f: write(f / "where.json", [GOOD]).with_name("wher.json"),
    ),
    learn("no such folder", "no/where", "check the path", task="no/where"),
    data("no rows", [], "holds no rows", "add examples"),
    data("no bytes", "", "empty", "add examples"),
    data(
        "wrong keys",
        [GOOD, {"prompt": "a", "anwser": "b"}],
        "row 2",
        "no 'completion' or 'answer'",
        "did you mean 'answer'",
    ),
    data(
        "a number for text",
        [GOOD, GOOD, {"prompt": "a", "answer": 7}],
        "row 3",
        "'answer' must be a string, not a number (7)",
    ),
    data("a record that is none", [GOOD, "text"], "row 2", "must be an object"),
    data("not UTF-8", b'[{"prompt": "\xe4", "answer": "a"}]', "line 1", "0xe4", "save the file as UTF-8"),
    data("invalid JSON", '[{"prompt": "a",\n "answer": }]', "line 2", "invalid JSON", "fix it"),
    data(
        "completion above the context",
        [GOOD, {"prompt": "a", "answer": "b" * 60}],
        "row 2",
        "61 tokens",
        "max_length 48",
        "shorten",
    ),
    # Streams
    stream(
        "two tasks of one name",
        "stream.yaml",
        "task 2 'first'",
        "another 'name'",
        tasks=lambda w, f: entries(w, {"data": str(w.first)}),
    ),
    stream(
        "no test split",
        "train.json",
        "no test split",
        "'test'",
        tasks=lambda w, f: entries(w, {"data": str(w.second / "train.json"), "name": "b"}),
    ),
    stream(
        "unknown metric",
        "'rouge' is unknown",
        "did you mean 'rouge_l'",
        tasks=lambda w, f: entries(w, {"data": str(w.second), "metric": "rouge"}),
    ),
    stream(
        "unknown key of a task",
        "task 1",
        "unknown key 'epoch'",
        "did you mean 'epochs'",
        tasks=lambda w, f: [{"data": str(w.first), "epoch": 2}],
    ),
    stream(
        "unknown key of a stream",
        "stream.yaml",
        "unknown key 'leaning_rate'",
        "did you mean 'learning_rate'",
        leaning_rate=1,
    ),
    stream("no tasks", "stream.yaml", "'tasks' is empty", "list at least one", tasks=[]),
    stream("no model", "stream.yaml", "no model", "--model", model=""),
    Case(
        "no stream", ("nowhere.yaml", "check the path"), lambda w, f: ["run", f / "nowhere.yaml", "--output", f / "run"]
    ),
    # Models
    learn("no such model", "nowhere", "no such model folder", model="nowhere"),
    learn("a path too long", "9999...", "too long", "another path", model="9" * 5000, whole=True),
    learn("no config.json", "broken", "config.json", "model folder", model=without("config.json")),
    learn("no weights", "broken", "cannot be loaded", "model.safetensors", model=without("model.safetensors")),
    # Evaluation
    Case(
        "evaluation without test",
        ("no test split",),
        lambda w, f: evaluated("--task", write(f / "t" / "train.json", [GOOD]).parent)(w, f),
    ),
    Case(
        "evaluation by an unknown metric",
        ("'exact' is unknown", "exact_match"),
        evaluated("--task", "@first", "@second", "--metric", "exact"),
    ),
    Case(
        "one name evaluated twice", ("two tasks are called 'first'", "rename"), evaluated("--task", "@first", "@first")
    ),
    Case(
        "answers above the context",
        ("48", "lower max_new_tokens"),
        evaluated("--task", "@first", "--max-new-tokens", "48"),
    ),
    Case("batches of nothing", ("--batch-size", "at least 1"), evaluated("--task", "@first", "--batch-size", "0")),
    Case("nothing to evaluate on", ("--task", "--general"), evaluated()),
    Case("vLLM that is not installed", ("vllm is not installed",), evaluated("--task", "@first", "--engine", "vllm")),
    Case(
        "four bits for vLLM",
        ("--quantization", "--engine vllm"),
        evaluated("--task", "@first", "--engine", "vllm", "--quantization", "4bit"),
    ),
    Case(
        "an adapter for vLLM",
        ("is an adapter", "seekr export --merge"),
        lambda w, f: [
            *("evaluate", "--model", write(f / "a" / "adapter_config.json", {}).parent, "--task", w.first),
            *("--output", f / "scores", "--engine", "vllm"),
        ],
    ),
    Case("a base without --general", ("--base", "add --general"), evaluated("--task", "@first", "--base", "@base")),
    Case("a limit without --general", ("--limit", "add --general"), evaluated("--task", "@first", "--limit", "3")),
    Case("general data nowhere", ("nowhere", "not a folder"), evaluated("--general", "nowhere")),
    Case("comparing no run", ("scores.json", "seekr run"), lambda w, f: ["compare", w.first]),
    Case("comparing a run with itself", ("named twice",), lambda w, f: ["compare", w.run, w.run]),
    Case("two ways to print", ("choose one",), lambda w, f: ["compare", w.run, "--json", "--markdown"]),
    # Plans
    Case("plan without a config", ("nowhere", "no such file", "config.json"), planned("nowhere")),
    Case("plan of an unknown type", ("lama", "unknown to transformers", "'llama'"), planned({"model_type": "lama"})),
    Case("plan of no config", ("config.json", "no 'model_type'"), planned([1])),
    Case("plan of invalid JSON", ("config.json", "not readable as JSON"), planned("{")),
    Case("plan of an encoder-decoder", ("no causal language model",), planned({"model_type": "t5"})),
    Case("plan of no tasks", ("--tasks", "at least 1"), planned({"model_type": "llama"}, "--tasks", "0")),
    Case("plan of an answer alone", ("leaves no prompt",), planned(SMALL, "--tokens=9", "--answer-tokens=9")),
    Case("plan without a stream", ("nowhere.yaml", "check the path"), planned(SMALL, "nowhere.yaml")),
    Case("plan of an unknown setting", ("unknown key 'ratoi'", "'ratio'"), planned(SMALL, "replay.ratoi=1")),
    Case("plan of no size", ("memory.max_bytes", "not a size", "2GB"), planned(SMALL, "memory.max_bytes=lots")),
    # Launching
    Case("launch without a config", ("nowhere.yaml", "check the path"), launched("nowhere.yaml")),
    Case("launch by invalid YAML", ("two.yaml line 2", "invalid YAML"), launched("a: [1\n")),
    Case("launch by a list", ("two.yaml", "must be a mapping", "compute_environment"), launched(["num_processes"])),
    Case(
        "launch by an unknown key",
        ("two.yaml", "num_proceses"),
        launched({"distributed_type": "NO", "num_proceses": 2}),
    ),
    Case("launch of some processes", ("two.yaml", "num_processes", "'some'"), launched({"num_processes": "some"})),
    Case("launch of no process", ("two.yaml", "num_processes", "'0'"), launched({"num_processes": 0})),
    Case("launch of an unknown kind", ("two.yaml", "'MANY'"), launched({"distributed_type": "MANY"})),
    Case(
        "launch of two that would be one",
        ("two.yaml", "MULTI_CPU", "not 2", "distributed_type: MULTI_GPU", "use_cpu: true"),
        launched({"distributed_type": "MULTI_CPU", "num_processes": 2}),
    ),
    Case("length of nothing", ("max_length", "above 0"), evaluated("--task", "@first", "--max-length", "0")),
]
