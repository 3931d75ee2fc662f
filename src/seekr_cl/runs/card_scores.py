"""Scores of a run in the cards of its models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from seekr_cl.models.card import card_text, escaped, own_card, replaced, split_card, write_card
from seekr_cl.training.model_card import SCORES


def add_scores(folder: Path, scores: Mapping[str, Mapping[str, Any]], base: Mapping[str, float]) -> None:
    """Puts what a model scored into its card; a README of its owner's, or none, stays as it is.

    Args:
        folder: the model's.
        scores: by task its ``score``, ``metric``, ``examples`` and ``interval``.
        base: by task what the base model scored.
    """
    text = own_card(folder)
    if text is None:
        return
    data, body = split_card(text)
    rows = ["| task | metric | score | 95% interval | base model | examples |", "|---|---|---|---|---|---|"]
    for name, one in scores.items():
        # Runs of former versions have none.
        interval = "-" if one["interval"] is None else "{:.1f} to {:.1f}".format(*one["interval"])
        before = f"{base[name]:.1f}" if name in base else "-"
        cells = [escaped(name), escaped(one["metric"]), f"{one['score']:.1f}", interval, before]
        rows.append(f"| {' | '.join(cells)} | {one['examples']} |")
    data.model_name = folder.name
    data.eval_results = [
        EvalResult("text-generation", name, name, one["metric"], round(float(one["score"]), 2))
        for name, one in scores.items()
    ]
    write_card(folder, card_text(data, replaced(body, SCORES, "\n".join(rows))))
