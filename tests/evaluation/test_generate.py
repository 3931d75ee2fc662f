"""Answers do not depend on who else is in the batch, and the model is left as it was."""

import pytest
import torch

from seekr_cl.evaluation import generate, generate_answers

TEXTS = ["once upon a time", "a", "the dog ran to the", "b c", "zz", "once", "tim was sad. he", "lily", "", "i am so"]


def prompts_of(tokenizer, texts=TEXTS):
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def greedy_by_hand(model, prompt: list[int], count: int, stop: int) -> list[int]:
    """One prompt, no padding, no cache: the likeliest token again and again."""
    ids = list(prompt) or [stop]
    new: list[int] = []
    model.eval()
    while len(new) < count and (not new or new[-1] != stop):
        with torch.no_grad():
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


def test_the_same_answers_for_any_batch_size(pair):
    model, tokenizer = pair
    prompts = prompts_of(tokenizer)
    alone = generate_answers(model, tokenizer, prompts, 12, batch_size=1)
    assert len(set(alone)) > 3  # not the same word ten times
    for batch_size in (3, 8, 100):
        assert generate_answers(model, tokenizer, prompts, 12, batch_size) == alone
    by_hand = [greedy_by_hand(model, prompt, 12, tokenizer.eos_token_id) for prompt in prompts]
    assert tokenizer.batch_decode(by_hand, skip_special_tokens=True) == alone


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_an_answer_stops_at_the_end_of_text_token(pair, batch_size):
    model, tokenizer = pair
    prompts = prompts_of(tokenizer)
    free = [greedy_by_hand(model, prompt, 10, -1 if prompt else tokenizer.eos_token_id) for prompt in prompts]
    # The fourth token of the first answer is declared to be the end: what came before it must be all there is.
    end = free[0][3]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    model.generation_config.eos_token_id = None  # what it holds would end answers too
    prompts, free = prompts[:-2], free[:-2]  # the empty one would start from another token now
    wanted = [new[: new.index(end)] if end in new else new for new in free]
    assert any(len(new) < 10 for new in wanted)
    answers = generate_answers(model, tokenizer, prompts, 10, batch_size)
    assert answers == tokenizer.batch_decode(wanted, skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_end_that_the_model_was_published_with_stops_an_answer(make_model, batch_size):
    model, tokenizer = make_model("llama")
    prompts = prompts_of(tokenizer)[:3]
    free = [greedy_by_hand(model, prompt, 10, tokenizer.eos_token_id) for prompt in prompts]
    ends = [free[0][2], free[1][4]]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]
    wanted = [new[: min([new.index(end) for end in ends if end in new], default=len(new))] for new in free]
    assert [len(new) for new in wanted] != [len(new) for new in free]
    answers = generate_answers(model, tokenizer, prompts, 10, batch_size)
    assert answers == tokenizer.batch_decode(wanted, skip_special_tokens=True)


def test_without_a_padding_token_the_end_of_text_token_pads(pair):
    model, tokenizer = pair
    prompts = prompts_of(tokenizer)
    before = generate_answers(model, tokenizer, prompts, 8, 3)
    tokenizer.pad_token = None
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    assert generate_answers(model, tokenizer, prompts, 8, 3) == before


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_settings_stay_as_they_were(pair, training):
    model, tokenizer = pair
    model.train(training)
    model.generation_config.update(temperature=0.7, do_sample=True, max_new_tokens=3)
    settings, content = model.generation_config, model.generation_config.to_dict()
    generate_answers(model, tokenizer, prompts_of(tokenizer, TEXTS[:2]), 4, 2)
    assert model.training is training
    assert model.generation_config is settings
    assert settings.to_dict() == content


def test_they_are_put_back_after_a_failure_too(make_model):
    model, tokenizer = make_model("llama")
    model.train()
    settings = model.generation_config
    with pytest.raises(KeyboardInterrupt):
        generate_answers(model, tokenizer, prompts_of(tokenizer), 2, 3, on_batch=interrupt)
    assert model.training
    assert model.generation_config is settings


def interrupt(_: int) -> None:
    raise KeyboardInterrupt


def test_a_models_own_sampling_settings_do_not_change_greedy_answers(make_model):
    model, tokenizer = make_model("llama")
    prompts = prompts_of(tokenizer)
    plain = generate_answers(model, tokenizer, prompts, 12, 3)
    # As published chat models have them; a repetition penalty counts padding as well, batch by batch.
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.5)
    model.generation_config.update(no_repeat_ngram_size=2, min_new_tokens=5, num_beams=2)
    for batch_size in (1, 3):
        assert generate_answers(model, tokenizer, prompts, 12, batch_size) == plain


@pytest.mark.parametrize("gap", [0.0, 3e-7, -3e-7, 2e-6])
def test_tokens_nearly_alike_are_decided_the_same_way_in_every_batch(make_model, gap):
    """Half of the vocabulary has a twin whose logit is the same or differs by no more than rounding does."""
    model, tokenizer = make_model("llama")
    with torch.no_grad():
        half = model.lm_head.weight.shape[0] // 2
        model.lm_head.weight[half : 2 * half] = model.lm_head.weight[:half] * (1 + gap)
    prompts = prompts_of(tokenizer, [text * n for n in (1, 2) for text in TEXTS])
    alone = generate_answers(model, tokenizer, prompts, 16, 1)
    for batch_size in (3, 20):
        assert generate_answers(model, tokenizer, prompts, 16, batch_size) == alone


def test_a_near_tie_counts_until_the_row_has_ended(make_model):
    _, tokenizer = make_model("llama")
    watched = generate._NearTies(tokenizer.eos_token_id)
    ids = torch.tensor([[5, 6], [5, 6], [5, 6], [5, 2]])
    scores = torch.tensor([[4.0, 4.0], [4.0, 4.0 - 1e-5], [4.0, 3.9], [4.0, 3.0]])
    assert torch.equal(watched(ids, scores), scores)
    watched(torch.cat([ids, torch.tensor([[7], [7], [7], [tokenizer.eos_token_id]])], 1), torch.ones(4, 2) * 2)
    assert watched.rows() == [0, 1, 2]  # the last row has ended: what comes after is padding


def test_progress_counts_prompts_and_long_ones_come_first(make_model):
    model, tokenizer = make_model("llama")
    done: list[int] = []
    widths: list[int] = []
    watch = model.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    generate_answers(model, tokenizer, prompts_of(tokenizer), 1, 3, on_batch=done.append)
    watch.remove()
    assert done == [3, 3, 3, 1]
    assert widths == sorted(widths, reverse=True)


def test_no_prompts_no_answers(make_model):
    assert generate_answers(*make_model("llama"), [], 4, 2) == []
