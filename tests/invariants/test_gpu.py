"""What a GPU adds: half precision, shards over NCCL, four bits, Triton's kernels, Liger, inductor.

Each row runs on the CPU too where the device is the only difference, so that what waits for a GPU is a tested test.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pair import Pair, learn_two, pair
from recorded import assert_same_curves, curves
from test_processes import FSDP2
from tinylm import PLAIN_SGD, assert_same, differs, memory_tensors, weights

from cases import LORA, REPLAY, SEEKR
from seekr_cl.attention.kernels.routing import _runs, route
from seekr_cl.memory import ReplayMemory, model_hash
from seekr_cl.models.loading import load_model

WORDS = {"count": 12}
DEVICES = ["cpu", "cuda"]
SETTINGS: dict[str, Any] = PLAIN_SGD | {"method": SEEKR, "replay": REPLAY, "per_device_train_batch_size": 4}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def require(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU with CUDA, there is none")
    if device == "cuda" and torch.cuda.device_count() > 1:
        pytest.skip("needs one visible GPU; set CUDA_VISIBLE_DEVICES=0")


def learnt(base: Path, folder: Path, device: str, **settings: Any) -> Path:
    """Two tasks on a device, in this process."""
    learn_two(base, folder, WORDS, SETTINGS | {"use_cpu": device == "cpu"} | settings)
    assert differs(weights(folder / "m2"), weights(base)), "nothing was learnt"
    return folder


@pytest.fixture(scope="module")
def plain(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Two tasks in single precision on a device, learned once."""
    done: dict[str, Path] = {}

    def get(device: str) -> Path:
        require(device)
        if device not in done:
            done[device] = learnt(bases["llama"], tmp_path_factory.mktemp(device), device)
        return done[device]

    return get


@pytest.fixture(scope="module")
def sharded() -> Iterator[Callable[[str], Pair]]:
    """Processes that shard by FSDP2: one over NCCL on a GPU, two on the CPU; started once."""
    with ExitStack() as stack:
        done: dict[str, Pair] = {}

        def get(device: str) -> Pair:
            require(device)
            if device not in done:
                done[device] = stack.enter_context(pair(2 if device == "cpu" else 1, **FSDP2))
            return done[device]

        yield get


def mean_apart(left: Path, right: Path, term: str) -> float:
    """How far a term's values are apart, relative to their mean."""
    one, other = (torch.tensor(curves(folder)[f"m2/{term}"]) for folder in (left, right))
    return float((one - other).abs().mean() / one.mean())


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_is_a_cpu(plain: Callable[[str], Path], device: str) -> None:
    """In single precision; sums are taken in another order, and TF32 stays off."""
    assert_same_curves(curves(plain("cpu")), curves(plain(device)), 4.0)
    assert_same(weights(plain("cpu") / "m2"), weights(plain(device) / "m2"), 1e-5)


@pytest.mark.parametrize("form", [{"bf16": True}, {"dtype": "bfloat16"}], ids=["autocast", "weights"])
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_is_close_to_single(
    bases: dict[str, Path], plain: Callable[[str], Path], tmp_path: Path, device: str, form: dict[str, Any]
) -> None:
    """A bfloat16 has eight bits: a loss is near by 1/256 or so, and so is what attention moved by, if less so."""
    whole, half = plain(device), learnt(bases["llama"], tmp_path, device, **form)
    assert 0 < mean_apart(whole, half, "loss_task") < 0.02
    assert 0 < mean_apart(whole, half, "loss_logits") < 0.3
    assert 0 < mean_apart(whole, half, "loss_attention") < 0.3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", [SEEKR, SEEKR | {"teacher": "adapter"}], ids=["stored", "adapter"])
def test_shards_of_a_device_are_the_whole(
    bases: dict[str, Path],
    sharded: Callable[[str], Pair],
    tmp_path: Path,
    device: str,
    method: dict[str, Any],
) -> None:
    processes = sharded(device)
    count = len(processes.processes)
    settings = {"method": method, "peft": LORA, "use_cpu": device == "cpu"}
    asked = SETTINGS | settings | {"per_device_train_batch_size": 4 // count}
    assert processes.ask(bases["llama"], tmp_path / "sharded", WORDS, asked) == [""] * count
    learnt(bases["llama"], tmp_path / "whole", device, **settings)
    assert_same_curves(curves(tmp_path / "whole"), curves(tmp_path / "sharded"), 2.0)
    assert_same(weights(tmp_path / "whole/m2"), weights(tmp_path / "sharded/m2"), 4e-6)
    left, right = (memory_tensors(tmp_path / name / "memory") for name in ("whole", "sharded"))
    assert_same(left, right, 4e-5)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("teacher", ["stored", "adapter"])
def test_four_bits_are_close_to_whole_weights(
    bases: dict[str, Path], tmp_path: Path, device: str, teacher: str
) -> None:
    require(device)
    settings = {"method": SEEKR | {"teacher": teacher}, "peft": LORA}
    four = learnt(bases["llama"], tmp_path / "four", device, quantization="4bit", **settings)
    whole = learnt(bases["llama"], tmp_path / "whole", device, **settings)
    assert 0 < mean_apart(whole, four, "loss_task") < 0.2
    model = load_model(four / "m2", quantization="4bit")[0]
    assert any(weight.dtype == torch.uint8 for weight in model.parameters())
    assert ReplayMemory.open(four / "memory").model_sha256 == model_hash(model)


@pytest.mark.parametrize("device", DEVICES)
def test_kernels_are_tiles(bases: dict[str, Path], plain: Callable[[str], Path], tmp_path: Path, device: str) -> None:
    """A GPU's own way through the attention term, which is Triton's kernels, against PyTorch alone."""
    own = plain(device)
    assert _runs(torch.device(device)) == (device == "cuda"), (
        "no kernels on this GPU: too old, or no compiler or triton"
    )
    with route("tiles"):
        tiles = learnt(bases["llama"], tmp_path, device)
    assert_same_curves(curves(tiles), curves(own), 2.0)
    assert_same(weights(tiles / "m2"), weights(own / "m2"), 4e-6)
    assert max(curves(own)["m2/loss_attention"]) > 0


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
@pytest.mark.parametrize("peft", [None, LORA], ids=["full", "lora"])
def test_liger_is_none(bases: dict[str, Path], tmp_path: Path, peft: Any) -> None:
    """On a GPU only; ``tests/attention/test_liger_terms.py`` has what can be told without one."""
    require("cuda")
    # Measured in the middle of a task too: SwiGLU's kernel serves one backward pass.
    settings = SETTINGS | {"use_cpu": False, "measure_every": 1, "peft": peft}
    with_it, without = tmp_path / "liger", tmp_path / "plain"
    # In a process of its own: Liger replaces the rotary embedding of all models of a process.
    with pair(1) as processes:
        asked = settings | {"use_liger_kernel": True}
        assert processes.ask(bases["llama"], with_it, WORDS, asked) == [""]
    learnt(bases["llama"], without, "cuda", **settings)
    assert differs(weights(with_it / "m2"), weights(without / "m2")), "nothing was replaced"
    assert_same_curves(curves(without), curves(with_it), 20.0)
    assert_same(weights(without / "m2"), weights(with_it / "m2"), 1e-4)


def test_inductor_is_eager(bases: dict[str, Path], plain: Callable[[str], Path], tmp_path: Path) -> None:
    """On a GPU only: on a CPU it takes a minute; ``test_compiled.py`` has the same without code generation."""
    require("cuda")
    torch._dynamo.reset()
    compiled = learnt(bases["llama"], tmp_path, "cuda", torch_compile=True)
    assert_same_curves(curves(plain("cuda")), curves(compiled), 20.0)
    assert_same(weights(plain("cuda") / "m2"), weights(compiled / "m2"), 1e-4)
