"""What goes into a memory comes out of it, in this process and in the next."""

import ast
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from made_memory import HEADS, INFO, commit, make_importance, make_sample, make_task

import seekr_cl
from seekr_cl.attention.stored import StoredDense, StoredFactors, StoredOutputs, StoredTopK
from seekr_cl.attention.stored.codec import DTYPES
from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory import LogitSignal, MemoryTask, ReplayMemory, ReplaySample, Totals
from seekr_cl.memory.sample_codec import pack, unpack
from seekr_cl.memory.shard import StoredSamples, write_shard
from seekr_cl.memory.signals import ROWS, SIGNALS
from seekr_cl.tasks import Encoded

SOURCE = Path(seekr_cl.__file__).parent


def same_samples(left: list[ReplaySample], right: list[ReplaySample], atol: float = 0.0) -> None:
    def close(one: torch.Tensor | None, other: torch.Tensor | None) -> None:
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=atol)

    assert len(left) == len(right)
    for one, other in zip(left, right):
        assert (one.prompt, one.completion, one.completion_start) == (
            other.prompt,
            other.completion,
            other.completion_start,
        )
        close(one.ids_L, other.ids_L)
        assert (one.logits is None, one.attention is None) == (other.logits is None, other.attention is None)
        if one.logits is not None:
            for name in ("position_A", "code_AK", "token_AK", "tail_A", "offset_A"):
                close(getattr(one.logits, name), getattr(other.logits, name))
        if one.attention is not None:
            close(one.attention.query_R, other.attention.query_R)
            assert type(one.attention.rows) is type(other.attention.rows)
            mine, theirs = one.attention.rows.tensors(), other.attention.rows.tensors()
            assert mine.keys() == theirs.keys()
            for name, tensor in mine.items():
                close(tensor, theirs[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_committed_is_read_back(tmp_path: Path, dtype: str) -> None:
    memory = ReplayMemory.open(tmp_path / "memory", create=True)
    given = make_task("task", dtype=dtype)
    commit(memory, given)
    later = ReplayMemory.open(tmp_path / "memory")
    same_samples(later.tasks[0].samples, given.samples)
    same_samples(memory.tasks[0].samples, later.tasks[0].samples)
    assert (later.tasks[0].name, later.tasks[0].heads, later.tasks[0].info) == ("task", HEADS, INFO)


def test_format_3_is_written_byte_for_byte(tmp_path: Path) -> None:
    """Every kind and form in exact numbers, whose two files were the same before there was a registry of signals."""

    def numbers(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        count_N = torch.arange(math.prod(shape)) * 7 % 101
        return (count_N / 128 if dtype.is_floating_point else count_N).to(dtype).reshape(shape)

    key_MRK = torch.arange(24).remainder(6).to(torch.uint8).reshape(3, 2, 4)
    group_M, vectors = torch.tensor([0, 1, 1], dtype=torch.uint8), numbers(3, 2, 4, dtype=torch.int8)
    steps = (numbers(3, 2), numbers(2, 6), numbers(3, dtype=torch.float32))
    rows = {
        "attention": [
            StoredDense(numbers(3, 2, 6), numbers(3, 2)),
            StoredTopK(numbers(3, 2, 4, dtype=torch.uint8), key_MRK, numbers(3, 2), None, numbers(3, 2)),
            StoredFactors(vectors, numbers(2, 6, 4, dtype=torch.int8), group_M, *steps),
        ],
        "values": [StoredDense(numbers(3, 2, 6, dtype=torch.bfloat16))],
        "outputs": [StoredOutputs(vectors, numbers(3, 2))],
    }
    position_A, token_AK = torch.tensor([3, 4]), torch.tensor([[1, 2, 3], [4, 0, 2]], dtype=torch.uint16)
    logits = [
        {},
        {"logits": LogitSignal(position_A, numbers(2, 5, dtype=torch.float32))},
        {"logits": LogitSignal(position_A, numbers(2, 3, dtype=torch.uint8), token_AK, numbers(2), numbers(2))},
    ]
    samples = []
    for number, (kind, form) in enumerate((kind, form) for kind, forms in rows.items() for form in forms):
        signals = logits[number % 3] | {kind: ROWS[kind](torch.tensor([0, 3]), form)}
        ids_L = torch.arange(6) + number
        samples.append(ReplaySample(f"prompt {number} ∑", f"answer {number}", ids_L, 4, signals))
    samples.append(ReplaySample("bare", "", torch.arange(6), 0))
    texts, signals = write_shard(tmp_path / "x", samples)
    assert (texts["bytes"], signals["bytes"]) == (458, 2805)
    assert texts["sha256"] == "629014e4a3621df1293d594aaa0d699e3d93ab33ac10044d81b85588699e3c4c"
    assert signals["sha256"] == "a2323eaf5d30f75e3d8c12e9b409fdfd889becd432d2f90f10134b9841439f32"
    back = StoredSamples(tmp_path / "x.jsonl", tmp_path / "x.safetensors", {0: [0, 1, 2]}, Totals.of(samples))
    assert write_shard(tmp_path / "y", back)[1]["sha256"] == signals["sha256"]


@dataclasses.dataclass(frozen=True)
class Entropy:
    """A signal that the library does not have: one number for each token."""

    entropy_L: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"nats": self.entropy_L}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> "Entropy":
        return cls(tensors["nats"])

    def check(self, length: int, heads: int) -> dict[str, bool]:
        return {"nats": self.entropy_L.shape == (length,)}


def test_another_signal_is_a_class_and_a_line_in_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = make_sample(1)
    signals = {**full.signals, "entropy": Entropy(torch.rand(len(full.ids_L)))}
    short = dataclasses.replace(full, signals={"entropy": Entropy(torch.rand(3))})
    with monkeypatch.context() as patch:
        patch.setitem(SIGNALS, "entropy", Entropy)
        memory = ReplayMemory.open(tmp_path / "memory", create=True)
        given = dataclasses.replace(full, signals=signals)
        commit(memory, dataclasses.replace(make_task("task"), samples=[given, short]))
        kept = ReplayMemory.open(tmp_path / "memory").tasks[0].samples
        same_samples([kept[0]], [given])
        assert torch.equal(kept[0].signals["entropy"].entropy_L, signals["entropy"].entropy_L)
        with pytest.raises(MemoryFormatError, match=r"entropy/nats of the sample out of place"):
            _ = kept[1]
    with pytest.raises(MemoryFormatError, match=r"\['entropy'\] unknown"):
        _ = kept[0]


def test_which_tokens_of_a_conversation_are_learnt_is_read_back(tmp_path: Path) -> None:
    memory = ReplayMemory.open(tmp_path / "memory", create=True)
    task = make_task("task")
    length = len(task.samples[0].ids_L)
    spans = ((1, 2), (length - 2, length - 1))
    turns = dataclasses.replace(task.samples[0], learnt=spans, completion_start=length - 2)
    commit(memory, dataclasses.replace(task, samples=[turns, task.samples[1]]))
    kept = ReplayMemory.open(tmp_path / "memory").tasks[0].samples
    assert [sample.learnt for sample in kept] == [spans, None]
    assert kept[0].encoded == Encoded(turns.ids_L.tolist(), length - 2, 0, spans)
    assert [one.learnt for one in unpack(pack(kept), [{"prompt": "p", "completion": "c"}] * 2)] == [spans, None]


@pytest.mark.parametrize(
    "learnt", [(), ((2, 1),), ((0, 99),), ((3, 4), (1, 2)), ((1, 3), (2, 4)), ((-1, 2),), ((1, 2),)]
)
def test_runs_of_tokens_that_cannot_be_are_found(tmp_path: Path, learnt: tuple[tuple[int, int], ...]) -> None:
    memory = ReplayMemory.open(tmp_path / "memory", create=True)
    task = make_task("task")
    wrong = dataclasses.replace(task.samples[0], learnt=learnt, completion_start=0)
    commit(memory, dataclasses.replace(task, samples=[wrong]))
    with pytest.raises(MemoryFormatError, match=r"sample 0 is not one .*out of place"):
        _ = ReplayMemory.open(tmp_path / "memory").tasks[0].samples[0]


def test_generations_pile_up_and_old_files_never_change(tmp_path: Path) -> None:
    memory = ReplayMemory.open(tmp_path / "memory", create=True)
    assert memory.generation == 0
    assert memory.num_bytes == 0
    assert memory.samples == []
    before: dict[str, bytes] = {}
    for number in (1, 2, 3):
        commit(memory, make_task(f"task {number}", number), model=f"m{number}")
        found = [path for path in memory.path.rglob("*") if path.is_file() and path.name != "manifest.json"]
        files = {str(path.relative_to(memory.path)): path.read_bytes() for path in found}
        assert {name: files[name] for name in before} == before
        before = files
        later = ReplayMemory.open(memory.path)
        assert (later.generation, later.model_sha256, later.tokenizer_sha256) == (number, f"m{number}", "t")
        assert [task.name for task in later.tasks] == [f"task {i}" for i in range(1, number + 1)]
        assert later.importance.layers == (0, 1, 2)
        for name in ("sensitivity_NH", "forgettability_NH", "product_NH"):
            assert torch.equal(getattr(later.importance, name), getattr(make_importance(number), name))
        listed = {f["file"] for task in later.current.tasks for f in task["files"]}
        listed |= {"manifest.json", f"importance-{number:04d}.safetensors", f"generations/{number:04d}.json"}
        assert later.num_bytes == memory.num_bytes == sum((memory.path / name).stat().st_size for name in listed)


def test_two_tasks_in_one_generation_and_none(tmp_path: Path) -> None:
    memory = ReplayMemory.open(tmp_path / "memory", create=True)
    commit(memory, make_task("general"), make_task("first", 5))
    commit(memory)
    assert [task.name for task in memory.tasks] == ["general", "first"]
    later = ReplayMemory.open(memory.path)
    assert later.generation == 2
    for one, other in zip(memory.tasks, later.tasks):
        same_samples(one.samples, other.samples)


def test_a_memory_without_signals_or_samples(tmp_path: Path) -> None:
    full = make_sample(1)
    bare = ReplaySample(full.prompt, full.completion, full.ids_L, full.completion_start)
    memory = ReplayMemory.open(tmp_path / "memory", create=True)
    commit(memory, MemoryTask("bare", [bare]), MemoryTask("nothing", []), importance=None)
    later = ReplayMemory.open(memory.path)
    same_samples(later.tasks[0].samples, [bare])
    assert later.importance is None
    assert later.tasks[1].samples == []


@pytest.mark.parametrize(
    "name",
    ["情感分析", "Schlüsselwörter & Ärger", "a/b\\c", "../../etc/passwd", "Ｆｕｌｌ", "🙂 task", "e\u0301", "x" * 150],
)
def test_task_names_from_unicode(tmp_path: Path, name: str) -> None:
    memory = ReplayMemory.open(tmp_path / "memory", create=True)
    commit(memory, make_task(name))
    assert [task.name for task in ReplayMemory.open(memory.path).tasks] == [name]
    folders = {path.parent for path in tmp_path.rglob("*") if path.is_file()}
    assert folders == {memory.path, memory.path / "generations"}


def test_two_names_with_one_folder_form_do_not_overwrite_each_other(tmp_path: Path) -> None:
    memory = ReplayMemory.open(tmp_path / "memory", create=True)
    commit(memory, make_task("a b", 1))
    commit(memory, make_task("a/b", 7))
    same_samples(ReplayMemory.open(memory.path).tasks[0].samples, make_task("", 1).samples, 2e-3)


def test_it_belongs_to_one_model_and_one_tokenizer(folder: Path) -> None:
    memory = ReplayMemory.open(folder)
    memory.check_belongs("m2", "t")
    wanted = (
        r"manifest\.json: generation 2 belongs to another model.*'second'.*"
        rf"this model belongs to generation 0001, after task 'first'.*rollback {folder} --to 0001"
    )
    with pytest.raises(MemoryFormatError, match=wanted):
        memory.check_belongs("m1", "t")
    with pytest.raises(MemoryFormatError, match=r"manifest\.json: its token ids come from another tokenizer"):
        memory.check_belongs("m2", "other")
    ReplayMemory(folder / "new").check_belongs("whatever", "whatever")


def test_files_are_read_by_their_owner_alone_and_the_manifest_by_people(folder: Path) -> None:
    listed = "".join(path.read_text("utf-8") for path in [*folder.glob("generations/*"), folder / "manifest.json"])
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.name == "manifest.json" or f'"{path.name}"' in listed
    assert json.loads((folder / "manifest.json").read_text("utf-8"))["format"] == "seekr-memory"
    assert "∑" in (folder / "0001-first.jsonl").read_text("utf-8")


def test_nothing_in_the_library_unpickles() -> None:
    banned = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not {name.split(".")[0] for name in names} & banned, path
            if isinstance(node, ast.Attribute):
                called = ast.unparse(node)
                assert called not in ("torch.load", "torch.save", "np.load", "numpy.load"), f"{path}: {called}"
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", path
