"""What scoring and writing take of passes, against what really runs."""

import json

import pytest
import torch
from counted import ANSWER, EPOCHS, EXAMPLES, LETTERS, LORA, TOKENS, UNPROBED, counted_positions, learnt, planned
from tinylm import config_for
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from seekr_cl.attention import AttentionTap
from seekr_cl.memory import ReplaySample
from seekr_cl.methods.base import Layout
from seekr_cl.methods.lfpt5 import TRIES
from seekr_cl.methods.losses import causal_lm_loss
from seekr_cl.methods.seekr.scoring import Scorer
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings
from seekr_cl.models.peft_adapters import put_adapter
from seekr_cl.planning import Workload, make_plan, read_shape
from seekr_cl.planning.passes import scoring_work, training_work

ON_A_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
"""PyTorch's counter leaves out what its fused attention does on a CPU."""
LENGTH = 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve layers, so that what the first one's backward pass lacks hardly counts."""
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=80, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256,
    )  # fmt: skip
    place = tmp_path_factory.mktemp("deep")
    (place / "config.json").write_text(json.dumps(config.to_dict()))
    return place


def flops(call) -> int:
    with FlopCounterMode(display=False, custom_mapping=ON_A_CPU) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_training_pass_is_what_pytorch_counts(folder, frozen):
    model = AutoModelForCausalLM.from_config(read_shape(folder).config)
    if frozen:
        model = put_adapter(model, LORA | {"r": 1}, str(folder), 0)
    ids_1L = torch.randint(300, (1, LENGTH))

    def step():
        causal_lm_loss(model(input_ids=ids_1L, use_cache=False).logits, ids_1L).backward()

    expected = training_work(read_shape(folder), LENGTH, frozen).products
    # The adapter's own products are the difference.
    assert flops(step) == pytest.approx(expected, rel=0.12 if frozen else 0.01)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [({"query_budget": 20}, 1), ({"query_budget": None}, 100), ({"measure": "padded", "query_budget": None}, 30),
     ({"gradient_leak": True, "query_budget": 20}, 30), ({"heads": "random", "query_budget": 20}, 30)],
)  # fmt: skip
def test_scoring_is_what_pytorch_counts(folder, settings, answer):
    settings, shape = SeekrSettings(**settings), read_shape(folder)
    model = AutoModelForCausalLM.from_config(shape.config)
    sample = ReplaySample("", "", torch.randint(300, (LENGTH,)), LENGTH - answer)
    query_R = torch.arange(settings.query_budget or LENGTH)
    with AttentionTap(model) as tap:
        scorer = Scorer(tap, Layout(0), settings.measure, [sample])

        def score():
            if not settings.scores_heads:
                scorer.kept([sample], [query_R], [lambda call, index, rows: rows])
                return
            scorer.before([sample], [query_R], lambda call, index, rows: rows)
            scorer.after([sample], [query_R], None, None, settings.gradient_leak)

        found = flops(score)
    assert found == pytest.approx(scoring_work(shape, settings, LENGTH, answer, False).products, rel=0.004)


def test_a_kept_sample_costs_a_pass_where_the_model_is_large_and_more_where_it_is_frozen_or_small(tmp_path, folder):
    large = LlamaConfig(max_position_embeddings=4096)
    (tmp_path / "config.json").write_text(json.dumps(large.to_dict()))

    def ratio(place, frozen):
        config = config_for("seekr", tmp_path, replay={"samples": 4}, peft=LORA if frozen else None)
        work = Workload([50, 50], [1.0, 1.0], 1536, 128)
        steps = make_plan(read_shape(place), config, work, 1000 if frozen else None).steps
        assert steps.scored == pytest.approx(8 * steps.scoring)
        return steps.scoring

    assert ratio(tmp_path, False) == pytest.approx(1.03, abs=0.02)
    assert ratio(tmp_path, True) == pytest.approx(1.48, abs=0.03)
    assert ratio(folder, False) > 1.5


@pytest.fixture(scope="module")
def endless(base, tmp_path_factory):
    """The base model, for which the end of text is never among the likelier half of all tokens."""
    place = tmp_path_factory.mktemp("endless")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] = 0
    model.save_pretrained(place)
    AutoTokenizer.from_pretrained(base).save_pretrained(place)
    return place


@pytest.mark.parametrize("letters", [LETTERS, 25])
@pytest.mark.filterwarnings("ignore:.*the model ends none of its answers")
def test_answers_to_old_prompts_are_counted(endless, tmp_path, letters):
    """Twice as long as references at most, and never beyond the context of 64."""
    method = {"name": "onpolicy_replay", "temperature": 0.0, "keep": 1.0}
    config = config_for(
        method, tmp_path, **UNPROBED, learning_rate=0, num_train_epochs=EPOCHS, replay={"samples": 3, "every": 1}
    )
    made = planned(endless, config, letters)
    with counted_positions() as found:
        learnt(endless, tmp_path, config, letters)
    # Three kept samples of the first task, then of the first two.
    assert made.overhead.texts == 3 + 6
    assert made.overhead.positions == 9 * min(3 * (letters + 1) - 1, 64 - 1) == found.asked
    assert made.steps.written == pytest.approx(found.asked / 3 / (2 * letters + 2))


def test_judging_answers_by_confidence_takes_a_pass_over_each(endless, tmp_path):
    taken = {}
    for scorer in ("metric", "confidence"):
        config = config_for({"name": "onpolicy_replay", "scorer": scorer}, tmp_path, replay={"samples": 3, "every": 1})
        taken[scorer] = planned(endless, config).steps.own
    judged = 9 * (TOKENS + ANSWER) / TOKENS
    assert taken["confidence"] - taken["metric"] == pytest.approx(judged / 3)


@pytest.mark.parametrize("consistency", [0.0, 0.01])
@pytest.mark.filterwarnings("ignore:.*pseudo-samples")
def test_pseudo_samples_are_counted(endless, tmp_path, consistency):
    """All but the prefix and the separator, whose tokens no config tells."""
    method = {"name": "lfpt5", "pseudo_ratio": 0.5, "consistency": consistency}
    config = config_for(method, tmp_path, **UNPROBED, learning_rate=0, replay={"every": 1})
    made = planned(endless, config)
    with counted_positions() as found:
        learnt(endless, tmp_path, config)
    written = TRIES * sum(round(0.5 * count) for count in EXAMPLES[1:])
    around = len("[t4] ") + len(" [answer] ") - 1
    assert made.overhead.texts == written
    # Texts that end early are let go once half of a batch has; planned is at most.
    assert made.overhead.positions == written * TOKENS
    assert 0.9 * written * TOKENS <= found.asked - written * around <= written * TOKENS
    # What is written cannot be read here, so nothing of it is asked for; planned is at most.
    asked = written / TRIES if consistency else 0
    assert made.steps.own == pytest.approx(2 * sum(EXAMPLES) + made.steps.replayed + asked / 3)
    assert made.steps.written == pytest.approx(written / 3)
