"""Runs of characters as runs of tokens, with and without offsets."""

import pytest
from transformers import AddedToken, ByT5Tokenizer

from seekr_cl.tasks.spans import tokenised

TEXT = "user:a<|end|>assistant:bé中<|end|>\nuser:c"
SPANS = [(TEXT.index("bé"), TEXT.index("\nuser")), (len(TEXT) - 1, len(TEXT))]


@pytest.fixture(params=["python", "rust", "right"])
def any_tokenizer(request, make_tokenizer):
    tokenizer = ByT5Tokenizer() if request.param == "python" else make_tokenizer()
    # Phi's tokens take the line break behind them with them.
    end = AddedToken("<|end|>", special=True, rstrip=request.param == "right")
    tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    return tokenizer


def test_runs_are_found(any_tokenizer):
    ids, spans = tokenised(any_tokenizer, TEXT, SPANS)
    assert [any_tokenizer.decode(ids[begin:end]) for begin, end in spans] == ["bé中<|end|>", "c"]
    assert ids == any_tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert spans[1][1] == len(ids)


def test_an_empty_run_has_no_tokens(any_tokenizer):
    _, spans = tokenised(any_tokenizer, TEXT, [(5, 5), (5, 6)])
    assert spans[0][0] == spans[0][1] == spans[1][0]


def test_a_token_over_a_beginning_or_an_end_is_split(make_tokenizer):
    tokenizer = make_tokenizer()  # merges ":B"
    for span in ((2, 3), (0, 2)):
        ids, ((begin, end),) = tokenised(tokenizer, "A:B", [span])
        assert len(ids) == 3
        assert tokenizer.decode(ids[begin:end]) == "A:B"[slice(*span)]
    assert len(tokenised(tokenizer, "A:B", [(1, 3)])[0]) == 2
