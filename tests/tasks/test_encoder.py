import logging

import pytest
import torch

from seekr_cl.errors import ConfigError, DataError, ModelError
from seekr_cl.tasks import Encoded, Encoder, Example, Task, collate


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def front_of(tokenizer):
    full = tokenizer("x")["input_ids"]
    return [tokenizer.bos_token_id] if full[0] == tokenizer.bos_token_id else []


def test_exact_border_survives_a_merge_across_it(tokenizer):
    example = Example("A:", "B")
    assert len(ids(tokenizer, "A:B")) == 2  # the tokenizer does merge ":B"
    encoded = Encoder(tokenizer, 32).encode(example)
    front = front_of(tokenizer)
    assert encoded.input_ids == [*front, *ids(tokenizer, "A:"), *ids(tokenizer, "B"), tokenizer.eos_token_id]
    assert encoded.input_ids[encoded.completion_start :] == [*ids(tokenizer, "B"), tokenizer.eos_token_id]
    assert encoded.prompt_tokens_cut == 0


def test_joint_border_moves_with_the_merge(make_tokenizer):
    tokenizer = make_tokenizer()
    encoded = Encoder(tokenizer, 32, "merged").encode(Example("A:", "B"))
    merged = ids(tokenizer, ":B")
    assert len(merged) == 1
    assert encoded == Encoded([0, *ids(tokenizer, "A"), *merged, 1], 2, 0)


@pytest.mark.parametrize("length", range(6, 16))
def test_only_the_prompt_is_cut(tokenizer, length):
    encoder = Encoder(tokenizer, length)
    encoded = encoder.encode(Example("abcdefgh", "xyz", source="f row 1"))
    front, prompt = front_of(tokenizer), ids(tokenizer, "abcdefgh")
    kept = min(8, length - 4 - len(front))
    assert encoded.input_ids == [*front, *prompt[8 - kept :], *ids(tokenizer, "xyz"), 1]
    assert len(encoded.input_ids) <= length
    assert (encoded.completion_start, encoded.prompt_tokens_cut) == (len(front) + kept, 8 - kept)
    assert encoder.cut_count == (kept < 8)


def test_cut_count_counts_examples_not_calls(tokenizer):
    encoder = Encoder(tokenizer, 6)
    one, two = Example("abcdefgh", "x", source="f row 1"), Example("abcdefgh", "x", source="f row 2")
    for example in (one, one, two, Example("a", "x")):
        encoder.encode(example)
    encoder.encode_prompt(one, reserve=2)
    assert encoder.cut_count == 2


def test_completion_that_does_not_fit(tokenizer):
    with pytest.raises(DataError, match=r"^f row 9: .* 4 tokens with EOS and 1 before it, above max_length 4; raise"):
        Encoder(tokenizer, 4).encode(Example("p", "xyz", source="f row 9"))
    fits = Encoder(tokenizer, 5).encode(Example("p", "xyz"))
    assert len(fits.input_ids) == 5
    with pytest.raises(DataError, match="above max_answer_length 2"):
        Encoder(tokenizer, 40, max_answer_length=2).encode(Example("p", "xyz"))


def test_limit_on_the_prompt(tokenizer):
    encoder = Encoder(tokenizer, 40, max_prompt_length=4)
    encoded = encoder.encode(Example("abcdefgh", "x"))
    assert encoded.completion_start == 4
    assert encoded.input_ids[:4] == encoder.encode_prompt(Example("abcdefgh", "x"))
    assert encoded.input_ids[3] == ids(tokenizer, "h")[0]


@pytest.mark.parametrize("boundary", ["separate", "merged"])
def test_prompt_for_generation(make_tokenizer, boundary):
    tokenizer = make_tokenizer(front=True, back=True)
    encoder = Encoder(tokenizer, 10, boundary)
    assert encoder.encode_prompt(Example("abc", "ignored")) == [0, *ids(tokenizer, "abc")]
    long = encoder.encode_prompt(Example("abcdefghijklm", ""), reserve=4)
    assert len(long) == 6
    assert long == ([0, *ids(tokenizer, "ijklm")] if boundary == "separate" else ids(tokenizer, "hijklm"))
    with pytest.raises(ConfigError, match="max_new_tokens"):
        encoder.encode_prompt(Example("a", ""), reserve=10)


def test_an_empty_prompt_still_has_a_token_to_start_from(tokenizer):
    encoder = Encoder(tokenizer, 8)
    assert encoder.encode(Example("", "x")) == Encoded([0, *ids(tokenizer, "x"), 1], 1, 0)
    assert encoder.encode_prompt(Example("", "x")) == [0]
    tokenizer.bos_token = None
    if not front_of(tokenizer):
        assert Encoder(tokenizer, 8).encode_prompt(Example("", "x"))  # falls back on the end-of-text token


def test_messages(make_tokenizer):
    turns = ({"role": "user", "content": "u"}, {"role": "assistant", "content": "v"})
    example = Example("", "", messages=turns, source="f row 2")
    tokenizer = make_tokenizer(front=True, chat=True)
    encoder = Encoder(tokenizer, 32)
    assert encoder.render(example) == ("<s>[user]u[assistant]", "v")
    prompt = [0, *ids(tokenizer, "[user]u[assistant]")]  # one BOS: the template's, not another of the tokenizer's
    assert encoder.encode(example) == Encoded([*prompt, *ids(tokenizer, "v"), 1], len(prompt), 0)
    for adds_bos in (True, False):  # the template's BOS is kept whether or not the tokenizer adds one itself
        cut = Encoder(make_tokenizer(front=adds_bos, chat=True), 8).encode(example)
        assert cut.input_ids == [0, *ids(tokenizer, "tant]"), *ids(tokenizer, "v"), 1]
        assert cut.prompt_tokens_cut == 13
    with pytest.raises(DataError, match=r"^f row 2: .* no chat template; .*set tokenizer.chat_template"):
        Encoder(make_tokenizer(), 32).encode(example)
    with pytest.raises(DataError, match=r"^f row 3: the chat template refuses .*no tools here"):
        encoder.encode(Example("", "", messages=({"role": "tool", "content": "u"}, turns[1]), source="f row 3"))


def test_a_completion_that_ends_with_the_end_token_gets_no_second(tokenizer):
    assert Encoder(tokenizer, 8).encode(Example("p", "x</s>")) == Encoder(tokenizer, 8).encode(Example("p", "x"))


def test_bad_settings(make_tokenizer):
    tokenizer = make_tokenizer()
    for bad in ({"max_length": 0}, {"max_length": 8.0}, {"max_length": 8, "max_prompt_length": True}):
        with pytest.raises(ConfigError, match="whole number"):
            Encoder(tokenizer, **bad)
    with pytest.raises(ConfigError, match="did you mean 'merged'"):
        Encoder(tokenizer, 8, "mergd")
    with pytest.raises(ConfigError, match="= 12 is above max_length 8"):
        Encoder(tokenizer, 8, "merged", max_prompt_length=8, max_answer_length=4)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"set tokenizer\.eos_token"):
        Encoder(tokenizer, 8)


@pytest.mark.parametrize(("room", "bos", "eos"), [(7, 1, 1), (6, 0, 1), (5, 0, 0)])
def test_joint_drops_bos_then_eos_as_room_runs_out(make_tokenizer, room, bos, eos):
    tokenizer = make_tokenizer()
    encoded = Encoder(tokenizer, room, "merged").encode(Example("abc", "xy"))
    assert encoded.input_ids == [0] * bos + ids(tokenizer, "abcxy") + [1] * eos
    assert len(encoded.input_ids) - encoded.completion_start == 3
    over = Encoder(tokenizer, 4, "merged").encode(Example("abc", "vwxyz"))
    assert over == Encoded(ids(tokenizer, "wxyz"), 0, 4)


@pytest.mark.parametrize(
    ("side", "multiple", "width"), [("right", 1, 4), ("left", 1, 4), ("left", 8, 8), ("right", 3, 6)]
)
def test_collate(side, multiple, width):
    batch = collate([Encoded([5, 6, 7, 8], 2, 0), Encoded([9, 10], 0, 0)], 3, side, multiple)
    pad = width - 4

    def rows(first, second, fill):
        if side == "left":
            return [[fill] * pad + first, [fill] * (pad + 2) + second]
        return [first + [fill] * pad, second + [fill] * (pad + 2)]

    assert batch["input_ids"].tolist() == rows([5, 6, 7, 8], [9, 10], 3)
    assert batch["attention_mask"].tolist() == rows([1, 1, 1, 1], [1, 1], 0)
    assert batch["labels"].tolist() == rows([-100, -100, 7, 8], [9, 10], -100)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize("bad", [{"encoded": []}, {"side": "up"}, {"multiple": 0}])
def test_collate_refuses(bad):
    with pytest.raises(ConfigError):
        collate(**{"encoded": [Encoded([1], 0, 0)], "pad_id": 0, **bad})


@pytest.mark.parametrize("name", ["C-STANCE", "MeetingBank"])
def test_real_rows(name, shared, real_tokenizer, caplog):
    task = Task.load(shared / "data" / "trace" / name)
    longest = max(task.test, key=lambda example: len(example.prompt))
    encoder = Encoder(real_tokenizer, 512)
    for example in [longest, task.train[0]]:
        with caplog.at_level(logging.WARNING):
            encoded = encoder.encode(example)
        answer = ids(real_tokenizer, example.completion)
        whole = ids(real_tokenizer, example.prompt)
        assert encoded.input_ids[encoded.completion_start :] == [*answer, real_tokenizer.eos_token_id]
        kept = len(whole) - encoded.prompt_tokens_cut
        prompt = [*front_of(real_tokenizer), *whole[len(whole) - kept :]]
        assert encoded.input_ids[: encoded.completion_start] == prompt
        assert (encoded.prompt_tokens_cut > 0) == (len(encoded.input_ids) == 512)
    if name == "MeetingBank":
        assert len(longest.prompt) == 163_532
        assert encoder.cut_count == 2
        assert len(encoder.encode_prompt(longest, reserve=64)) == 448
    assert "longer than" not in caplog.text
