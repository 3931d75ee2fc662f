"""``seekr score``: score answers that are there already. Needs no model, and so none of the libraries that run one."""

import json
from pathlib import Path
from typing import Any

from seekr_cl.cli.output import out
from seekr_cl.errors import DataError
from seekr_cl.evaluation.answers_file import read_answers
from seekr_cl.evaluation.metrics import get_metric
from seekr_cl.evaluation.statistics import bootstrap


def score_command(given: Any) -> None:
    """``seekr score``."""
    metric = get_metric(given.metric)
    extract = None
    if given.extract is not None:
        # The package of tasks imports transformers; most scores do without.
        from seekr_cl.tasks.extraction import get_extraction

        extract = get_extraction(given.extract)
    path = Path(given.predictions)
    answers = read_answers(path, metric, extract)
    try:
        tally = answers.tally(metric)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if given.json:
        print(json.dumps({"metric": given.metric, "score": tally.score, "examples": len(tally)}))
        return
    low, high = bootstrap(tally).to_json()
    count = f"{len(tally)} example{'s' * (len(tally) != 1)}"
    out().print(f"{given.metric} {tally.score:.2f} ({count}, 95% interval {low:.1f} to {high:.1f})", soft_wrap=True)
