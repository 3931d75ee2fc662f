"""The command ``seekr``."""

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, NoReturn

from seekr_cl.cli.answers import answering, take_answers
from seekr_cl.cli.examples import add_examples
from seekr_cl.cli.method_names import METHOD_NAMES
from seekr_cl.environment import environment_number, whole_number
from seekr_cl.errors import ConfigError, SeekrError
from seekr_cl.os_errors import describe
from seekr_cl.system.run_record import set_command
from seekr_cl.system.stop_requests import Stopped, graceful
from seekr_cl.system.visible import visible

_PIPE_CLOSED = 141
# What is not a number is refused in ``main``, in one line.
_LAUNCHED = (whole_number(os.environ.get("WORLD_SIZE")) or 1) > 1
_PROCESS = whole_number(os.environ.get("RANK")) or 0
_SHOWN = (
    *("NoEffectWarning", "RenamedWarning", "CheckpointWarning", "OutputWarning", "DataWarning", "RetentionWarning"),
    "SmallerBatchWarning",
)
_METHODS = f"one of {', '.join(METHOD_NAMES)} (see seekr methods)"
_STOPPING = (
    "On SIGTERM or Ctrl-C the optimizer step is finished, the state saved and the exit code 143 or 130; continue with "
    "--resume. A second Ctrl-C stops at once."
)


class _Parser(argparse.ArgumentParser):
    """A parser that complains in one line, like everything else here."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2."""
        self.exit(2, f"error: {message}; see '{self.prog} --help'\n")


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = _Parser(
        prog="seekr", description="Teach a causal language model one task after another without forgetting."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    learn = commands.add_parser("learn", help="learn one task: model and memory in, model and memory out")
    learn.add_argument("--model", required=True, help="model folder or Hub name")
    learn.add_argument("--task", required=True, help="file, folder with train/eval/test files, or hub:owner/name")
    learn.add_argument("--memory", required=True, help="memory folder; created if missing")
    learn.add_argument("--output", required=True, help="folder for the new model; must be empty or missing")
    learn.add_argument("--resume", action="store_true", help="resume an interrupted task from its last checkpoint")
    learn.add_argument("--name", help="the task's name; default the file's or folder's")
    _take_live(learn)
    _config_options(learn)

    run = commands.add_parser("run", help="learn a stream of tasks, evaluating after each")
    run.add_argument("stream", help="YAML file with model, tasks and settings")
    run.add_argument("--output", required=True, help="the run's folder")
    run.add_argument("--model", help="model folder or Hub name, instead of the stream's")
    run.add_argument("--resume", action="store_true", help="continue the run in --output")
    _take_live(run)
    _config_options(run, config_file=False)
    for stoppable in (learn, run):
        _take_launch(stoppable)
        stoppable.epilog = f"{stoppable.epilog}. {_STOPPING}"

    plan = commands.add_parser("plan", help="what it would cost, from a model's config alone")
    plan.add_argument("--model", required=True, help="model folder or config.json; no weights are needed")
    plan.add_argument("--tasks", type=int, help="number of tasks (default 8, or the stream's)")
    plan.add_argument("--examples", type=int, help="training examples of a task (default 5000, or the stream's data)")
    plan.add_argument("--tokens", type=int, help="tokens of a sample (default max_length)")
    plan.add_argument("--answer-tokens", type=int, help="tokens of its answer (default max_answer_length or 128)")
    plan.add_argument("--nodes", type=int, help="machines: also say what grows with them and with the tasks")
    plan.add_argument("--gpus-per-node", type=int, help="GPUs of each machine (default 8)")
    plan.add_argument("--gpu-memory", help="of one GPU (default 80GB)")
    plan.add_argument("--json", action="store_true", help="numbers for a program; sizes in bytes")
    _config_options(plan, config_file=False)
    plan.set_defaults(stream_file=None)
    plan.usage = (plan.usage or "").replace("[KEY=VALUE ...]", "[STREAM.yaml] [KEY=VALUE ...]")

    evaluate = commands.add_parser("evaluate", help="generate and score")
    evaluate.add_argument("--model", required=True, help="model folder or Hub name")
    evaluate.add_argument("--task", nargs="+", help="files, folders, or a stream's YAML")
    evaluate.add_argument("--output", required=True, help="folder for scores.json and the predictions")
    evaluate.add_argument("--metric", help="metric of tasks that name none (default exact_match)")
    evaluate.add_argument("--max-new-tokens", type=int, default=64)
    evaluate.add_argument("--batch-size", type=int, help="the most prompts at a time (default: batch_tokens decide)")
    evaluate.add_argument("--max-length", type=int, help="maximum tokens of prompt and answer together")
    evaluate.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "auto"))
    evaluate.add_argument("--quantization", choices=("4bit",), help="of the base model's weights, as it was trained")
    evaluate.add_argument("--engine", default="transformers", choices=("transformers", "vllm"))
    evaluate.add_argument("--resume", action="store_true", help="resume an interrupted evaluation in --output")
    evaluate.add_argument(
        "--general", nargs="?", const="", metavar="FOLDER",
        help="MMLU, GSM8K, BBH, TyDiQA, BoolQ and PIQA by lm-evaluation-harness, from the Hub or from local data",
    )  # fmt: skip
    evaluate.add_argument(
        "--general-tasks", nargs="+", metavar="TASK[:SHOTS]",
        help="tasks of lm-evaluation-harness in place of these: ifeval, hellaswag, any other, a task's YAML, default",
    )  # fmt: skip
    evaluate.add_argument("--base", help="base model, or a former --output of it: how far general ability has drifted")
    evaluate.add_argument(
        "--before", metavar="FOLDER", help="former --output, of the model in use: what has been lost and gained since"
    )
    evaluate.add_argument("--limit", type=int, help="examples of each general task")
    take_answers(evaluate)
    _take_launch(evaluate)
    _take_overrides(evaluate)
    evaluate.epilog = (
        "KEY=VALUE sets how conversations are rendered and read: chat_template_kwargs.enable_thinking=false "
        "strip_thinking=false chat_template=FILE template_date=YYYY-MM-DD"
    )

    score = commands.add_parser("score", help="score answers from a file, from any source")
    score.add_argument(
        "predictions",
        metavar="PREDICTIONS.jsonl",
        help="one object a line: prediction, reference or references, prompt",
    )
    score.add_argument("--metric", required=True, help="its name, such as exact_match; docs/evaluation.md lists them")
    score.add_argument("--extract", help="how the answer is found in a prediction: whole, or trace (after a rationale)")
    score.add_argument("--json", action="store_true", help="metric, score and examples for a program")

    export = commands.add_parser("export", help="make a plain model folder of an adapter folder")
    export.add_argument("model", metavar="ADAPTER_FOLDER")
    export.add_argument("output", metavar="OUTPUT", help="folder for the model; must be empty or missing")
    export.add_argument("--merge", action="store_true", required=True, help="add the adapter to the base's weights")
    export.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "auto"))

    compare = commands.add_parser("compare", help="one table and plot over runs, methods and seeds")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="folders of seekr run")
    compare.add_argument("--output", help="folder for comparison.png, .json, .md and .html; must be empty or missing")
    compare.add_argument("--json", action="store_true", help="print numbers for a program")
    compare.add_argument("--markdown", action="store_true", help="print the table as Markdown")

    watch = commands.add_parser("watch", help="where a run or a learning is, from another terminal or afterwards")
    watch.add_argument("run", metavar="RUN", help="the --output of seekr run or learn")
    watch.add_argument("--once", action="store_true", help="print it once and end")
    watch.add_argument("--json", action="store_true", help="print it once, for a program")
    watch.epilog = "for example: seekr watch run, or over ssh: ssh -t gpu-machine seekr watch run"

    report = commands.add_parser("report", help="one HTML page about runs, evaluations or learned tasks")
    report.add_argument("runs", nargs="+", metavar="RUN", help="folders of seekr run, learn or evaluate")
    report.add_argument("--output", required=True, metavar="FILE.html", help="the page; replaced if it is there")
    report.add_argument("--follow", action="store_true", help="write it again and again until the run is over")
    report.epilog = "for example: seekr report run-seqft run-seekr --output report.html"

    gate = commands.add_parser("gate", help="may this model replace the one in use? exit code 0 yes, 1 no, 3 unsure")
    gate.add_argument("run", nargs="?", metavar="RUN", help="folder of a seekr run: its last model is judged")
    gate.add_argument("--before", metavar="A", help="folder of a seekr evaluate: the model in use")
    gate.add_argument("--after", metavar="B", help="folder of a seekr evaluate: the model that is to replace it")
    gate.add_argument("--max-drop", type=float, default=2.0, help="points that an old task may lose (default 2)")
    gate.add_argument("--confidence", type=float, default=0.95, help="of the paired intervals (default 0.95)")
    gate.add_argument("--task", action="append", metavar="TASK=POINTS", help="another allowed drop for one task")
    gate.add_argument("--general", type=float, metavar="POINTS", help="allowed drop of each general benchmark")
    gate.add_argument(
        "--since", choices=("learned", "previous"),
        help="of a run: old tasks against right after they were learned (default), or against before the last task",
    )  # fmt: skip
    gate.add_argument("--json", action="store_true", help="for a program")
    gate.add_argument("--junit", metavar="FILE", help="also write JUnit XML")
    gate.epilog = (
        "Exit code: 0 if nothing fell by more than allowed, 1 if something surely did, 3 if there are too few examples "
        "to say, 2 for bad input. For example: seekr gate --before eval/in-use --after eval/new --max-drop 2 "
        "--task yahoo=5 --general 1 --junit gate.xml"
    )

    drift = commands.add_parser("drift", help="how far a model has moved: KL on stored prompts, loss on plain text")
    drift.add_argument("run", nargs="?", metavar="RUN", help="folder of a seekr run, instead of the models")
    drift.add_argument("--model", help="model folder or Hub name")
    drift.add_argument("--base", help="the base model")
    drift.add_argument("--previous", help="the model before the last task")
    drift.add_argument("--memory", help="memory folder: prompts and answers of old, general and new tasks")
    drift.add_argument(
        "--text", metavar="FILE", help="plain text, or JSON lines with 'text': its loss under each model"
    )
    drift.add_argument("--limit", type=int, default=32, help="samples of each task, windows of text (default 32)")
    drift.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "auto"))
    drift.add_argument("--output", help="folder for drift.json; of a run it is the run's")
    drift.add_argument("--json", action="store_true", help="for a program")
    drift.epilog = "for example: seekr drift my-run --text wiki.txt"

    demo = commands.add_parser("demo", help="the whole thing on a small model that ships with the package")
    demo.add_argument("--output", default="seekr-demo", help="folder for runs, plots and comparison.json")
    demo.add_argument("--methods", nargs="+", help="of seqft, multitask, replay, derpp, seekr; +general adds a task 0")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--quick", action="store_true", help="two tasks, few examples: a check that everything runs")
    take_answers(demo)
    _take_overrides(demo)

    inspect = commands.add_parser("inspect", help="what is learned: each example's text, learned tokens, truncation")
    inspect.add_argument("--model", required=True, help="model folder or Hub name; a tokenizer is enough")
    inspect.add_argument("--task", required=True, help="file, folder with train/eval/test files, or hub:owner/name")
    inspect.add_argument("-n", type=int, default=3, dest="examples", metavar="N", help="examples to show (default 3)")
    inspect.add_argument("--json", action="store_true", help="for a program")
    _config_options(inspect)

    _first_use_commands(commands)

    methods = commands.add_parser("methods", help="every method with its paper and what it needs")
    methods.add_argument("--json", action="store_true", help="for a program")

    benchmark = commands.add_parser("benchmark", help="benchmarks by name: list them, fetch their data")
    _benchmark_commands(benchmark.add_subparsers(dest="benchmark_command", required=True, metavar="WHAT"))

    memory = commands.add_parser("memory", help="inspect and maintain a memory")
    _memory_commands(memory.add_subparsers(dest="memory_command", required=True, metavar="WHAT"))
    add_examples(parser)
    return parser


def _first_use_commands(commands: Any) -> None:
    init = commands.add_parser("init", help="write a first settings file, with comments, from options or questions")
    init.add_argument("file", nargs="?", metavar="FILE.yaml", help="default seekr.yaml")
    init.add_argument("--model", help="model folder or Hub name")
    init.add_argument("--data", nargs="+", help="data of each task, in order: file, folder or hub:owner/name")
    init.add_argument("--test", nargs="+", help="test file of each task; folders may have them inside")
    init.add_argument("--method", help=_METHODS)
    which = init.add_mutually_exclusive_group()
    which.add_argument("--adapter", action="store_true", default=None, help="train an adapter (LoRA)")
    which.add_argument("--full", dest="adapter", action="store_false", help="train all weights")
    init.add_argument("--keep", type=float, metavar="N", help="samples to keep of each task, or a share such as 0.01")
    init.add_argument("--use-cpu", action="store_true", help="for a machine without a GPU")

    doctor = commands.add_parser("doctor", help="versions, devices, kernels, and what a model supports")
    doctor.add_argument("--model", help="model folder or Hub name; no weights are loaded")
    doctor.add_argument("--json", action="store_true", help="for a program")
    _take_overrides(doctor)

    push = commands.add_parser("push", help="put a model folder onto the Hugging Face Hub")
    push.add_argument("folder", metavar="FOLDER", help="model or adapter folder")
    push.add_argument("repo", metavar="OWNER/NAME", help="the repository; made if it is not there")
    push.add_argument("--private", action="store_true", help="only its owner may see it")
    push.add_argument("--base", metavar="OWNER/NAME", help="what an adapter's base model is called on the Hub")
    push.add_argument("--message", help="of the commit")
    push.add_argument("--dry-run", action="store_true", help="only list what would be sent")
    push.add_argument("--json", action="store_true", help="for a program")

    completion = commands.add_parser("completion", help="print what makes a shell complete commands and options")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))

    validate = commands.add_parser("validate", help="check all that a run would check, without training")
    validate.add_argument("--model", help="model folder or Hub name; a stream may name its own")
    validate.add_argument("--task", help="the data of one learning: file, folder, or hub:owner/name")
    validate.add_argument("--name", help="the task's name; default the file's or folder's")
    validate.add_argument("--memory", help="memory folder that the learning would go on from")
    validate.add_argument("--output", help="folder that would be written: is it free, is the disk large enough")
    validate.add_argument("--json", action="store_true", help="for a program")
    _config_options(validate, config_file=False)
    validate.set_defaults(stream_file=None)
    validate.usage = (validate.usage or "").replace("[KEY=VALUE ...]", "[FILE.yaml] [KEY=VALUE ...]")
    validate.epilog = f"FILE.yaml is a stream, or the settings of one learning. {validate.epilog}"


def _benchmark_commands(commands: Any) -> None:
    text = "tasks, orders, metrics and protocols of every benchmark"
    commands.add_parser("list", help=text, description=text).add_argument("--json", action="store_true")
    text = "turn an official archive into task folders, with checksums"
    fetch = commands.add_parser("fetch", help=text, description=text)
    fetch.add_argument("name", help="the benchmark; 'seekr benchmark list' names them")
    fetch.add_argument("--from", dest="source", required=True, metavar="SOURCE", help="folder, zip, tar, or URL")
    fetch.add_argument("--output", required=True, help="the new folder")
    fetch.add_argument("--variant", help="edition of the data, such as 5000 or reasoning")
    fetch.add_argument("--tasks", nargs="+", help="only these tasks")
    fetch.add_argument("--partial", action="store_true", help="take a source that lacks tasks or rows, and note it")
    take_answers(fetch)
    fetch.add_argument("--sha256", help="what the archive's hash must be")


def _memory_commands(commands: Any) -> None:
    def add(name: str, text: str) -> Any:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", help="the memory")
        return command

    show = add("show", "what a memory holds")
    show.add_argument("--samples", action="store_true", help="every sample with its id")
    show.add_argument("--task", help="only this task's samples")
    take_answers(show, quiet=False)
    take_answers(add("log", "the generations, one line each"), quiet=False)
    add("verify", "read everything and name what is broken")
    rollback = add("rollback", "make the generation after a task current again")
    rollback.add_argument("--to", required=True, metavar="TASK", help="the task, or a generation as log calls it")
    forget = add("forget", "remove texts and signals from every generation and from the disk")
    what = forget.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", help="all samples of this task")
    what.add_argument("--sample", metavar="ID", help="this sample; 'show --samples' lists ids")
    forget.add_argument(
        "--everywhere", nargs="+", metavar="RUN", help="also from these folders of seekr run, evaluate or learn"
    )
    collect = add("gc", "remove generations and files that are not needed")
    collect.add_argument("--keep", type=int, metavar="N", help="generations to keep (default: all on the current line)")
    export = add("export", "write the current generation into one file")
    export.add_argument("file")
    export.add_argument("--all", action="store_true", help="all generations that are kept")
    add("import", "make a memory folder of an exported file").add_argument("file")


def _config_options(parser: argparse.ArgumentParser, config_file: bool = True) -> None:
    if config_file:
        parser.add_argument("--config", help="YAML file with settings")
    parser.add_argument("--method", help=_METHODS)
    _take_overrides(parser)


def _take_live(parser: argparse.ArgumentParser) -> None:
    take_answers(parser)
    text = "keep a report up to date meanwhile (default: OUTPUT.html beside the output)"
    parser.add_argument("--live", nargs="?", const="", metavar="FILE.html", help=text)


def _take_launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--launch", metavar="ACCELERATE.yaml", help="start the processes that this accelerate config asks for"
    )


def _take_overrides(parser: argparse.ArgumentParser) -> None:
    # Not a positional: argparse would take it as empty as soon as an option stands before it.
    parser.set_defaults(overrides=[])
    parser.usage = parser.format_usage().removeprefix("usage: ").rstrip() + " [KEY=VALUE ...]"
    parser.epilog = "KEY=VALUE sets anything a YAML file could: learning_rate=1e-4 replay.ratio=0.02 method.heads=all"


def _parse(arguments: Sequence[str] | None) -> Any:
    parser = build_parser()
    given, rest = parser.parse_known_args(arguments)
    if getattr(given, "methods", None):
        # A list option swallows the settings that follow it; no method has an equals sign in its name.
        rest += [word for word in given.methods if "=" in word]
        given.methods = [word for word in given.methods if "=" not in word]
    if isinstance(getattr(given, "task", None), list) and hasattr(given, "overrides"):
        settings = [word for word in given.task if "=" in word and not os.path.exists(word)]
        rest += settings
        given.task = [word for word in given.task if word not in settings]
    if hasattr(given, "stream_file"):
        # Not a positional either: before Python 3.13 an optional one is taken as empty when an option comes first.
        files = [word for word in rest if word.endswith((".yaml", ".yml")) and "=" not in word]
        given.stream_file = files[0] if files else None
        rest = [word for word in rest if word not in files[:1]]
    for word in rest:
        if word.startswith("-") or "=" not in word or not hasattr(given, "overrides"):
            parser.prog = f"{parser.prog} {given.command}"  # whose help has what can be written
            parser.error(f"unrecognized argument: {word}{_as_setting(word, given)}")
    if rest:
        given.overrides = rest
    return given


def _as_setting(word: str, given: Any) -> str:
    """How an option that there is not would be written as a setting, for who comes from another tool."""
    name, sign, value = word.removeprefix("--").partition("=")
    key = name.replace("-", "_")
    if not word.startswith("--") or not hasattr(given, "overrides") or not key.replace(".", "").isidentifier():
        return ""
    return f"; a setting is written {key}={value if sign else 'VALUE'}, without dashes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM, the gate's own."""
    warnings.showwarning = _show_warning
    given = _parse(arguments)
    set_command(["seekr", *(sys.argv[1:] if arguments is None else arguments)])
    # Nothing here needs tokenizer threads, and forked loaders would print a page about them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    launch = getattr(given, "launch", None)
    try:
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
            environment_number(name, 0)
        if launch is not None:
            return _launch(launch, sys.argv[1:] if arguments is None else arguments)
        with (
            graceful() if given.command in ("learn", "run", "evaluate") else nullcontext(),
            _one_voice(),
            answering(given),
        ):
            # Before anything that imports torch, which takes longer than either of these.
            if given.command == "score":
                from seekr_cl.cli.score import score_command

                score_command(given)
            elif given.command == "completion":
                from seekr_cl.cli.completion_command import completion

                print(completion(given.shell, build_parser()))
            elif given.command == "watch":
                from seekr_cl.cli.watch_command import watch_command

                watch_command(given)
            else:
                from seekr_cl.cli import commands

                return commands.COMMANDS[given.command](given) or 0
    except Stopped as stopped:
        if not _PROCESS:
            print("stopped, and the state is saved; continue with the same command and --resume", file=sys.stderr)
        return stopped.code
    except SeekrError as error:
        if _may_speak(str(error)):
            print(f"error: {visible(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _PIPE_CLOSED
    except OSError as error:
        # Whatever the system refuses, anywhere: a full disk, a folder without permission, too many open files.
        if _may_speak(describe(error)):
            print(f"error: {visible(describe(error))}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        # Whoever waits for a process that has given up finds the connection closed.
        if _others_failed():
            return 2
        if (code := _others_lost(error)) is None:
            raise
        return code
    return 0


def _launch(config: str, words: Sequence[str]) -> int:
    from seekr_cl.cli.launcher import launch, without_launch

    if _LAUNCHED:
        raise ConfigError("--launch: this process has been launched already; remove it, or the launcher before it")
    return launch(config, without_launch(words))


@contextmanager
def _one_voice() -> Iterator[None]:
    """Only rank 0 prints."""
    if not _PROCESS:
        yield
        return
    warnings.showwarning = lambda *_, **__: None
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _may_speak(message: str) -> bool:
    if not _LAUNCHED:
        return True
    from seekr_cl.distributed.collectives import report

    return report(message)


def _others_failed() -> bool:
    if not _LAUNCHED:
        return False
    from seekr_cl.distributed.collectives import reported

    return reported()


def _others_lost(error: RuntimeError) -> int | None:
    """The exit code if the other processes are gone without a message, for instance killed."""
    if not _LAUNCHED:
        return None
    from seekr_cl.distributed import collectives

    if not collectives.lost(error):
        return None
    if collectives.LAUNCHER not in os.environ:
        print(f"error: process {_PROCESS}: another process is gone; continue with --resume", file=sys.stderr)
    return collectives.LOST


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    # Not by import: what is warned of may be that a library cannot be imported.
    if category.__name__ in _SHOWN:
        print(f"warning: {visible(message)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
