"""What grows with machines and tasks."""

from pathlib import Path

from seekr_cl.planning import Workload, make_plan, read_shape
from seekr_cl.planning.nodes import Cluster, crossing, terms
from seekr_cl.planning.shape import LayerShape, ModelShape
from seekr_cl.planning.workload import count_steps
from seekr_cl.training import config_from

LARGE = ModelShape("llama", {n: LayerShape(64, 8, 128) for n in range(80)}, 128256, 70_550_000_000, 8192)


def workload(tasks: int, examples: int = 400) -> Workload:
    return Workload([examples] * tasks, [1.0] * tasks, 512, 32)


def test_seventy_billion_weights_fit_only_in_shards() -> None:
    config = config_from({"use_cpu": True, "dtype": "bfloat16", "replay": {"samples": 4}}, "trainer")
    plan = make_plan(LARGE, config, workload(3))
    found = {term.name: term for term in terms(plan, config, Cluster(1, 8, 80_000_000_000))}
    state, whole = (next(t for name, t in found.items() if part in name) for part in ("optimizer", "whole model"))
    assert state.value < state.room < whole.value
    assert whole.value == 2 * LARGE.parameters
    # Twice the machines halve what is sharded and nothing else.
    more = {term.name: term for term in terms(plan, config, Cluster(2, 8, 80_000_000_000))}
    assert more[state.name].value == state.value / 2
    assert more[whole.name].value == whole.value


def test_replay_overtakes_the_task_unless_a_cadence_bounds_it() -> None:
    for settings, overtakes in (({"samples": 4}, True), ({"samples": 4, "every": 3}, False)):
        config = config_from({"use_cpu": True, "method": "replay", "replay": settings}, "trainer")
        plan = make_plan(LARGE, config, workload(200))
        last = next(term for term in terms(plan, config, Cluster(1, 8, 80_000_000_000)) if "replay in" in term.name)
        assert (last.value > last.room) == overtakes
        # 4 samples of each of 100 tasks are as many as the 400 examples of the next.
        assert crossing(plan) == 101


def test_what_runs_no_model_in_replay_never_overtakes_the_task(base: Path) -> None:
    """GEM replays nothing, and SAPT looks at embeddings alone."""
    for method in ("gem", "sapt"):
        config = config_from({"use_cpu": True, "method": method, "replay": {"samples": 4}}, "trainer")
        plan = make_plan(read_shape(base), config, workload(200, 40))
        last = next(term for term in terms(plan, config, Cluster(1, 8, 80_000_000_000)) if "replay in" in term.name)
        assert (last.value, crossing(plan)) == (0, None)


def test_many_tasks_are_counted_as_each_of_them_would_be() -> None:
    config = config_from({"use_cpu": True, "method": "replay", "replay": {"samples": 8}}, "trainer")
    alike = workload(40, 64)
    kept = [8] * 40
    whole = count_steps(Workload([*alike.examples[:-1], 65], alike.epochs, 512, 32), config, [*kept[:-1], 8])
    some = count_steps(alike, config, kept)
    assert abs(some.replayed - whole.replayed) <= 0.01 * whole.replayed
    assert abs(some.extra - whole.extra) <= 0.01 * whole.extra
