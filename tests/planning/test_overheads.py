"""What methods need beside model, optimizer and samples, as the plan says it and as it is in a real run."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from counted import EPOCHS, EXAMPLES, LORA, TOKENS, UNPROBED, counted_positions, learnt, planned
from rich.console import Console
from safetensors.torch import load_file
from tinylm import config_for
from torch import nn

from seekr_cl.memory import ReplayMemory, ReplaySample
from seekr_cl.memory.sample_codec import pack
from seekr_cl.methods import METHODS, get_method
from seekr_cl.methods.base import Method
from seekr_cl.methods.common import on_policy
from seekr_cl.methods.common.generation import write
from seekr_cl.methods.common.reference_gradients import ReferenceMethod
from seekr_cl.planning import read_shape
from seekr_cl.planning.overheads import COSTS
from seekr_cl.planning.show import show_plan

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "seqft": ({}, {}),
    "replay": ({}, {"replay": {"samples": 3, "every": 1}}),
    "ewc": ({"fisher_samples": 2}, {}),
    "ewc with all": ({"fisher_samples": 9}, {}),
    "rwalk": ({"interval": 2}, {}),
    "ogd": ({"directions": 8}, {}),
    "gem": ({}, {"replay": {"samples": 3}}),
    "gem with some": ({"reference_samples": 2}, {"replay": {"samples": 3}}),
    "agem": ({"reference_samples": 5}, {"replay": {"samples": 3}}),
    "lwf": ({}, {}),
    "lwf in half precision": ({}, {"dtype": "bfloat16"}),
    "lwf on an adapter": ({}, {"peft": LORA}),
    "icarl": ({}, {"replay": {"samples": 3, "every": 1}}),
    "derpp": ({}, {"replay": {"samples": 3, "every": 1}}),
    "derpp_mse": ({}, {"replay": {"samples": 3, "every": 1}}),
    "derpp on an adapter that is asked": ({"teacher": "adapter"}, {"replay": {"samples": 3, "every": 1}, "peft": LORA}),
    "olora": ({"rank": 2}, {}),
    "osft": ({"preserved": 0.25}, {}),
    "progressive_prompts": ({"prompt_length": 4, "bottleneck": 16}, {}),
    "l2p": ({"pool_size": 5, "prompt_length": 2, "top": 3}, {}),
    "l2p by hidden states": ({"pool_size": 5, "prompt_length": 2, "top": 3, "query": "hidden"}, {}),
    "sapt": ({"rank": 2, "query_size": 6}, {"replay": {"samples": 3, "every": 1}}),
    "tree_lora": ({"rank": 2}, {}),
    "slao": ({"rank": 2}, {}),
    "inflora": ({"rank": 2, "input_samples": 3}, {}),
}
IN_RAM = ("_attention", "_distance_KN", "_count_KN", "_drawn")
"""What SAPT, TreeLoRA and DER++ keep off the device."""


def held(part: Any, known: set[int], found: dict[int, int]) -> dict[int, int]:
    """Bytes of all tensors in an object's reach, by where they lie, so that each counts once."""
    if isinstance(part, torch.Tensor):
        if part.data_ptr() not in known:
            found[part.data_ptr()] = part.nbytes
    elif isinstance(part, nn.Module):
        held(list(part.parameters()), known, found)
    elif isinstance(part, dict):
        held(list(part.values()), known, found)
    elif isinstance(part, list | tuple):
        for one in part:
            held(one, known, found)
    return found


def own_bytes(method: Method) -> tuple[int, int]:
    """What the method object holds on the device, what it has put on the model among it; and in RAM."""
    weights: Any = [*method.context.model.parameters(), *method.context.model.buffers()]
    mine = {key: value for key, value in vars(method).items() if key not in ("context", "old", "_seen", *IN_RAM)}
    mine["adapters"] = dict(getattr(getattr(method, "teacher", None), "_held", {}))
    carried = held(list(method.context.previous_state[0].values()) if method.context.previous_state else [], set(), {})
    ram = held([getattr(method, name, None) for name in IN_RAM], set(), carried)
    return sum(held(mine, {one.data_ptr() for one in weights}, {}).values()), sum(ram.values())


def size(sample: ReplaySample) -> int:
    return sum(tensor.nbytes for tensor in pack([sample]).values())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_what_a_method_takes_is_what_a_real_run_takes(base, tmp_path, monkeypatch, name):
    settings, more = CASES[name]
    kind = get_method(name.split()[0])
    config = config_for({"name": kind.name} | settings, tmp_path, num_train_epochs=EPOCHS, **UNPROBED, **more)
    seen: dict[str, int] = {"device": 0, "ram": 0}
    after_step, reference = kind.after_step, ReferenceMethod.reference
    base_bytes = 4 * read_shape(base).parameters

    def watched(self, model):
        device, seen["ram"] = own_bytes(self)
        if kind.adapters:
            # Of a prompt PEFT also notes the tokens' numbers, and a rotary embedding is nobody's own.
            skipped = ("prompt_tokens", "inv_freq")
            buffers = [part for full, part in self.context.model.named_buffers() if not full.endswith(skipped)]
            every = held([*self.context.model.parameters(), *buffers], set(), {})
            device += sum(every.values()) - base_bytes
        seen["device"] = max(seen["device"], device)
        after_step(self, model)

    gradients: list[int] = []

    def watched_reference(self, samples):
        gradient = reference(self, samples)
        gradients.append(sum(part.nbytes for part in gradient.values()))
        return gradient

    monkeypatch.setattr(kind, "after_step", watched)
    monkeypatch.setattr(ReferenceMethod, "reference", watched_reference)
    with counted_positions() as positions:
        learnt(base, tmp_path, config)
    memory = ReplayMemory.open(tmp_path / "memory")
    if kind.name == "gem":
        seen["device"] = sum(gradients[-2:])
    elif kind.name == "agem":
        seen["device"] = gradients[-1]
    state = memory.method_state
    seen["carried"] = sum(tensor.nbytes for tensor in state.tensors.values()) if state else 0
    seen["written"] = written(tmp_path / f"m{len(EXAMPLES)}") if kind.adapters else 0
    seen["virtual"] = positions.widths[-1] - TOKENS
    plan = planned(base, config)
    if kind.name == "inflora":
        # How many directions the inputs have is known once they are there; the plan says the most.
        assert 0 < seen["ram"] <= seen["carried"] < plan.overhead.carried == plan.overhead.ram
        seen |= {"carried": plan.overhead.carried, "ram": plan.overhead.ram}
    assert seen == {key: value for key, value in asdict(plan.overhead).items() if key in seen}
    assert (seen["device"] == 0) == (name in ("seqft", "replay", "derpp", "derpp_mse"))
    steps = plan.steps
    # The model's weights are frozen where something else is trained, and a pass then is only twice one forward.
    forward = 1 / 2 if kind.adapters or "peft" in more else 1 / 3
    in_all = steps.trained + steps.replayed + steps.scored + steps.own + steps.written
    assert positions.passes(forward) == pytest.approx(in_all)
    assert steps.time_share == pytest.approx(1 - steps.trained / in_all)


REPLAYED = {"replay": {"samples": 3, "every": 1}}


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ({"name": "sdft"}, {}),
        ({"name": "sdft", "teacher": "ema"}, {}),
        ({"name": "sdft"}, {"peft": LORA}),
        ({"name": "sdft", "teacher": "off"}, {"peft": LORA}),
        ({"name": "onpolicy_replay", "loss": "kl"}, REPLAYED),
        ({"name": "onpolicy_replay", "loss": "kl"}, REPLAYED | {"peft": LORA}),
    ],
    ids=["sdft", "ema", "adapter", "off", "kl", "kl on an adapter"],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_teacher_on_the_models_own_answers(base, tmp_path, monkeypatch, method, more):
    """Its copy to the byte; how long the answers are is known once they are written, so passes and texts at most."""
    config = config_for(method, tmp_path, num_train_epochs=EPOCHS, **UNPROBED, **more)
    kind, devices, texts = config.method.kind, [0], []
    after_step = kind.after_step

    def watched(self, model):
        devices.append(own_bytes(self)[0])
        after_step(self, model)

    def counted(model, prompts, *args, **more):
        texts.extend(prompts)
        return write(model, prompts, *args, **more)

    monkeypatch.setattr(kind, "after_step", watched)
    monkeypatch.setattr(on_policy, "write", counted)
    with counted_positions() as positions:
        learnt(base, tmp_path, config)
    plan = planned(base, config)
    own, steps = plan.overhead, plan.steps
    assert (own.device, own.ram, own.carried, own.virtual) == (max(devices), 0, 0, 0)
    assert (own.device == 0) == (method.get("teacher") == "off")
    assert len(texts) == own.texts > 0
    in_all = steps.trained + steps.replayed + steps.scored + steps.own + steps.written
    assert 0.3 * in_all < positions.passes(1 / 2 if "peft" in more else 1 / 3) <= in_all


def written(folder):
    """Bytes of all tensors that a task leaves in place of a model."""
    if not any(folder.rglob("adapter_model.safetensors")):
        return 0
    return sum(tensor.nbytes for file in folder.rglob("*.safetensors") for tensor in load_file(file).values())


def test_written_samples_outputs_are_in_ram(base, tmp_path, monkeypatch):
    """At most: what cannot be read is not held. Counted with as many samples as the model would be asked for."""
    config = config_for({"name": "lfpt5", "pseudo_ratio": 0.5}, tmp_path, replay={"samples": 3, "every": 1})
    made = planned(base, config).overhead
    kind, sizes = config.method.kind, []
    old = kind.replay_source

    def watched(self, tasks):
        given = old(self, tasks)
        samples = [sample for task in given for sample in task.samples]
        sizes.append([size(sample) - size(replace(sample, signals={})) for sample in samples])
        return given

    monkeypatch.setattr(kind, "replay_source", watched)
    learnt(base, tmp_path, config)
    # Three real samples of each old task, all of one length, and room for half as many texts as new examples.
    assert len(set(sizes[-1][:3])) == 1
    assert made.ram == (6 + round(0.5 * EXAMPLES[-1])) * sizes[-1][0]


def test_a_method_that_nobody_has_counted_needs_nothing_aloud(base, tmp_path):
    """One from outside; one that is built on another counts as that."""
    for parent, known in ((Method, False), (get_method("ewc"), True)):
        kind = type("Outside", (parent,), {"name": "outside", "paper": get_method("ewc").paper})
        plan = planned(base, replace(config_for("ewc", tmp_path, num_train_epochs=EPOCHS), method=kind))
        assert (plan.overhead.carried > 0) == known
        said = [note for note in plan.notes if "outside" in note and "counts as nothing" in note]
        assert bool(said) != known
        assert plan.to_json()["notes"] == said
        console = Console(record=True, width=200)
        show_plan(plan, console)
        assert ("what outside itself takes is not known" in console.export_text()) != known


def test_every_method_of_the_library_is_counted():
    assert set(COSTS) == set(METHODS)
