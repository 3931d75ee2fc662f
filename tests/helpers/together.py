"""Two real processes that evaluate together, forked after the imports; each writes what it got as JSON."""

import json
import os
import signal
from pathlib import Path

import lm_eval
from generating import random_model

from seekr_cl.distributed import collectives
from seekr_cl.evaluation import Place, TransformersEngine, score_task
from seekr_cl.evaluation.general import evaluate_general
from seekr_cl.system.stop_requests import Stopped, graceful, raise_here_if_stop_requested
from seekr_cl.tasks import Encoder, Example, Task

BENCHMARKS = ("boolq", "piqa")
TASK = Task("t", [], test=[Example("ab" * (n % 7) + str(n), "c") for n in range(14)], max_new_tokens=5)


def main(data: Path, folder: Path) -> dict[str, object]:
    collectives.init_process_group()
    model, tokenizer = random_model("llama")
    asked = []
    evaluate = lm_eval.simple_evaluate
    lm_eval.simple_evaluate = lambda **given: (asked.append(given["tasks"]), evaluate(**given))[1]
    general = evaluate_general(model, tokenizer, 2, data, names=BENCHMARKS)
    answered = []

    def signal_the_second(count: int) -> None:
        answered.append(count)
        if collectives.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        raise_here_if_stop_requested()

    place = Place(folder, "m", collectives.rank(), collectives.world_size())
    code = 0
    try:
        with graceful():
            score_task(TransformersEngine(model, tokenizer, 3), TASK, Encoder(tokenizer, 64), signal_the_second, place)
    except Stopped as stopped:
        code = stopped.code
    return {"general": general, "benchmarks": len(asked), "code": code, "answered": answered}


def both(data: str, place: str) -> int:
    """Forks both and waits for them."""
    children = []
    for rank in ("0", "1"):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ.update(RANK=rank, LOCAL_RANK=rank)
            (Path(place) / f"{rank}.json").write_text(json.dumps(main(Path(data), Path(place) / "answers")))
            os._exit(0)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
