"""What methods need beside model, optimizer and samples, as the plan says it and as it is in a real run."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tinylm import config_for, reverse_task, teach
from torch import nn

from seekr_cl.memory import ReplayMemory, ReplaySample
from seekr_cl.memory.records import pack
from seekr_cl.methods import ewc, get_method, ogd
from seekr_cl.methods.base import Method
from seekr_cl.methods.costs import Overhead
from seekr_cl.methods.references import ReferenceMethod
from seekr_cl.planning import Plan, Workload, adapter_size, make_plan, read_shape

LETTERS = 12
TOKENS, ANSWER = 2 * LETTERS + 2, LETTERS + 1
EXAMPLES = [4, 3, 5]
LORA = {"peft_type": "LORA", "r": 3, "target_modules": "all-linear"}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "seqft": ({}, {}),
    "ewc": ({"fisher_samples": 2}, {}),
    "rwalk": ({"interval": 2}, {}),
    "ogd": ({"directions": 8}, {}),
    "gem": ({}, {"replay": {"samples": 3}}),
    "agem": ({"reference_samples": 5}, {"replay": {"samples": 3}}),
    "lwf": ({}, {}),
    "lwf in half precision": ({}, {"dtype": "bfloat16"}),
    "lwf on an adapter": ({}, {"peft": LORA}),
    "icarl": ({}, {"replay": {"samples": 3, "every": 1}}),
    "olora": ({"rank": 2}, {}),
    "osft": ({"preserved": 0.25}, {}),
    "progressive_prompts": ({"prompt_length": 4, "bottleneck": 16}, {}),
}


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


def own_bytes(method: Method) -> int:
    """What the method object holds, and what it has put on the model."""
    weights: Any = [*method.context.model.parameters(), *method.context.model.buffers()]
    mine = {key: value for key, value in vars(method).items() if key not in ("context", "old")}
    return sum(held(mine, {one.data_ptr() for one in weights}, {}).values())


def size(sample: ReplaySample) -> int:
    return sum(tensor.nbytes for tensor in pack([sample]).values())


def planned(base: Any, config: Any) -> Plan:
    work = Workload(EXAMPLES, [2.0] * len(EXAMPLES), TOKENS, ANSWER)
    return make_plan(read_shape(base), config, work, adapter_size(base, config.peft))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_bytes_are_those_of_a_real_run(base, tmp_path, monkeypatch, name):
    settings, more = CASES[name]
    kind = get_method(name.split()[0].rstrip(","))
    config = config_for({"name": kind.name} | settings, tmp_path, num_train_epochs=2, **more)
    expected = planned(base, config).overhead
    seen: dict[str, int] = {"device": 0, "ram": 0}
    after_step, reference = kind.after_step, ReferenceMethod.reference
    base_bytes = 4 * read_shape(base).parameters

    def watched(self, model):
        device = own_bytes(self)
        if kind.adapters:
            # Of a prompt PEFT also notes the tokens' numbers, and a rotary embedding is nobody's own.
            skipped = ("prompt_tokens", "inv_freq")
            buffers = [part for full, part in self.context.model.named_buffers() if not full.endswith(skipped)]
            every = held([*self.context.model.parameters(), *buffers], set(), {})
            device += sum(every.values()) - base_bytes
        carried = self.context.carried
        seen["device"] = max(seen["device"], device)
        seen["ram"] = sum(tensor.nbytes for tensor in carried[0].values()) if carried else 0
        after_step(self, model)

    gradients: list[int] = []

    def watched_reference(self, samples):
        gradient = reference(self, samples)
        gradients.append(sum(part.nbytes for part in gradient.values()))
        return gradient

    monkeypatch.setattr(kind, "after_step", watched)
    monkeypatch.setattr(ReferenceMethod, "reference", watched_reference)
    teach(base, tmp_path, [reverse_task(f"t{n}", count=n, length=LETTERS) for n in EXAMPLES], config)
    memory = ReplayMemory.open(tmp_path / "memory")
    if kind.name == "gem":
        seen["device"] = sum(gradients[-2:])
    elif kind.name == "agem":
        seen["device"] = gradients[-1]
    state = memory.method_state
    carried = sum(tensor.nbytes for tensor in state.tensors.values()) if state else 0
    adapter = tmp_path / f"m{len(EXAMPLES)}" / "adapter_model.safetensors"
    written = sum(t.nbytes for t in load_file(adapter).values()) if kind.adapters and adapter.is_file() else 0
    found = Overhead(seen["device"], seen["ram"], carried, written, expected.virtual, expected.passes)
    assert found == expected
    assert (found.device == 0) == (name == "seqft")


@pytest.mark.parametrize(("name", "samples"), [("ewc", 4), ("ogd", 20), ("gem", None), ("gem", 2), ("agem", 4)])
def test_passes_are_those_of_a_real_run(base, tmp_path, monkeypatch, name, samples):
    key = {"ewc": "fisher_samples", "ogd": "directions"}.get(name, "reference_samples")
    more = {"replay": {"samples": 3}} if name.endswith("gem") else {}
    config = config_for({"name": name, key: samples}, tmp_path, num_train_epochs=2, **more)
    counts: list[int] = []
    reference = ReferenceMethod.reference
    monkeypatch.setattr(
        ReferenceMethod, "reference", lambda self, samples: (counts.append(len(samples)), reference(self, samples))[1]
    )
    for module in (ewc, ogd):
        original = module.example_gradients

        def watched(context, examples, loss, original=original):
            counts.append(len(examples))
            return original(context, examples, loss)

        monkeypatch.setattr(module, "example_gradients", watched)
    teach(base, tmp_path, [reverse_task(f"t{n}", count=n, length=LETTERS) for n in EXAMPLES], config)
    made = planned(base, config)
    assert made.overhead.passes == sum(counts) > 0
    assert made.steps.own == sum(counts)
    assert (made.steps.steps, made.steps.extra) == (2 + 2 + 4, 0)
    assert made.steps.time_share == pytest.approx(sum(counts) / (sum(counts) + 2 * sum(EXAMPLES)))


def test_written_samples_outputs_are_in_ram(base, tmp_path, monkeypatch):
    """At most: what cannot be read is not held. Counted with as many samples as the model would be asked for."""
    config = config_for({"name": "lfpt5", "pseudo_ratio": 0.5}, tmp_path, replay={"samples": 3, "every": 1})
    made = planned(base, config).overhead
    kind, sizes = config.method_class, []
    old = kind.old_samples

    def watched(self, tasks):
        given = old(self, tasks)
        samples = [sample for task in given for sample in task.samples]
        sizes.append([size(sample) - size(replace(sample, logits=None)) for sample in samples])
        return given

    monkeypatch.setattr(kind, "old_samples", watched)
    teach(base, tmp_path, [reverse_task(f"t{n}", count=n, length=LETTERS) for n in EXAMPLES], config)
    # Three real samples of each old task, all of one length, and room for half as many texts as new examples.
    assert len(set(sizes[-1][:3])) == 1
    assert made.ram == (6 + round(0.5 * EXAMPLES[-1])) * sizes[-1][0]
