"""Each choice keeps what its paper says it keeps."""

import collections
from contextlib import nullcontext

import pytest
import torch
from tinylm import char_tokenizer, save_base
from transformers import AutoModelForCausalLM

from seekr_cl.methods.losses import causal_lm_loss
from seekr_cl.replay.selection import CHOICES, Candidates
from seekr_cl.replay.selection.by_model import herd
from seekr_cl.replay.selection.candidates import answer_loss, mean_hidden
from seekr_cl.tasks import Encoded, Encoder, Example


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(save_base(tmp_path_factory.mktemp("lm") / "base")).eval()


def candidates(model, pairs: list[tuple[str, str]], count: int, seed: int = 0, said: list[str] | None = None):
    encoder = Encoder(char_tokenizer(), 64)
    return Candidates(
        count=count,
        completions=[completion for _, completion in pairs],
        encoded=[encoder.encode(Example(*pair)) for pair in pairs],
        model=model,
        seed=seed,
        counting=lambda label, total: nullcontext(lambda done: None),
        say=(lambda line: said.append(line)) if said is not None else (lambda line: None),
    )


def words(count: int) -> list[tuple[str, str]]:
    draw = torch.Generator().manual_seed(1)
    letters = [
        "".join("abcdefgh"[i] for i in torch.randint(8, (2 + n % 5,), generator=draw).tolist()) for n in range(count)
    ]
    return [(f"{word}=", word[::-1]) for word in letters]


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_a_seeded_set_of_the_size_asked_for(model, name):
    pairs = words(20)
    for count in (1, 7, 20):
        one, again = (CHOICES[name](candidates(model, pairs, count, seed=3)) for _ in range(2))
        assert one == again
        assert len(one) == len(set(one)) == count
        assert set(one) <= set(range(20))
    if name in ("random", "balanced"):
        assert one != CHOICES[name](candidates(model, pairs, 7, seed=4))


def test_first_takes_the_first(model):
    assert CHOICES["first"](candidates(model, words(9), 4)) == [0, 1, 2, 3]


def test_balanced_is_balanced_over_answers(model):
    """Forty, eight and two of three answers: nine kept are three of each as far as there are three."""
    pairs = [(f"q{number}?", "yes") for number in range(40)] + [(f"p{number}?", "no") for number in range(8)]
    pairs += [("x?", "maybe"), ("y?", " maybe\n".strip())]
    said: list[str] = []
    chosen = CHOICES["balanced"](candidates(model, pairs, 9, said=said))
    counts = collections.Counter(pairs[index][1] for index in chosen)
    assert counts["maybe"] == 2
    assert sorted((counts["yes"], counts["no"])) in ([3, 4],)
    assert said == ["balanced over 3 different completions"]
    for count in (3, 6):  # the beginning of the list, which a shrunk memory is left with
        assert set(collections.Counter(pairs[index][1] for index in chosen[:count]).values()) == {count // 3}


def test_balanced_falls_back_to_lengths(model):
    pairs = [(f"{n}=", "ab"[n % 2] * 2 + "cdefghij"[n % 8] + str(n)) for n in range(30)]
    pairs += [(f"{n}=", "a" * 20 + str(n)) for n in range(10)]
    said: list[str] = []
    chosen = CHOICES["balanced"](candidates(model, pairs, 8, said=said))
    # Every fourth answer is long; a quarter of the strata holds them.
    assert sum(len(pairs[index][1]) > 15 for index in chosen) == 2
    assert "40 different completions are not classes: balanced over 8 completion lengths" in said[0]


def test_herding_keeps_the_mean(model):
    """Means of the picks are closer to the mean of all than those of random picks: here than of any of 50 draws."""
    features = torch.randn((60, 5), generator=torch.Generator().manual_seed(0)) + torch.arange(5)
    order = herd(features, 60)
    assert sorted(order) == list(range(60))

    def miss(indices):
        return float((features[indices].mean(0) - features.mean(0)).norm())

    for count in (4, 8, 16):
        draws = [torch.randperm(60, generator=torch.Generator().manual_seed(s))[:count].tolist() for s in range(50)]
        assert miss(order[:count]) < min(miss(draw) for draw in draws)
    pairs = words(40)
    task = candidates(model, pairs, 6)
    unit = torch.nn.functional.normalize(mean_hidden(model, [e.input_ids for e in task.encoded], lambda _: None), dim=1)
    errors = {name: float((unit[CHOICES[name](task)].mean(0) - unit.mean(0)).norm()) for name in ("herding", "random")}
    assert errors["herding"] < 0.7 * errors["random"]


def test_features_are_the_last_hidden_states(model):
    ids = [[1, 5, 6], [1, 7, 8, 9, 4]]
    done: list[int] = []
    found = mean_hidden(model, ids, done.append)
    for one, feature in zip(ids, found):
        with torch.no_grad():
            states = model(torch.tensor([one]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(feature, states[0].mean(0))
    assert sum(done) == 2


def test_loss_picks_what_the_model_finds_hardest(model):
    """The loss is that of training, and the examples with the largest are picked, the hardest first."""
    task = candidates(model, words(12), 5)
    expected = []
    for one in task.encoded:
        ids = torch.tensor([one.input_ids])
        labels = ids.clone()
        labels[0, : one.completion_start] = -100
        with torch.no_grad():
            expected.append(causal_lm_loss(model(ids).logits, labels))
    expected = torch.stack(expected)
    torch.testing.assert_close(answer_loss(model, task.encoded, lambda _: None), expected)
    chosen = CHOICES["loss"](task)
    assert expected[chosen].tolist() == expected.sort(descending=True).values[:5].tolist()
    assert expected[chosen].min() >= max(expected[i] for i in range(12) if i not in chosen)


def test_an_answer_without_a_prompt_has_a_loss_too(model):
    alone = Encoded([1], 0, 0)
    found = answer_loss(model, [Encoded([5, 6, 7], 0, 0), alone], lambda _: None)
    assert found[0] > 0
    assert found[1] == 0
