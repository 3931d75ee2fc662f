"""Some system calls of commands fail, each of another kind; ``benchmarks/syscall_faults.py`` does it at length."""

import shutil
from collections.abc import Iterator

import pytest
from faulty import ERRORS, Fault, Faulty, faulty

KINDS = [
    ("learn", "ENOSPC", "open"),
    ("learn", "EDQUOT", "write"),
    ("learn", "EIO", "fsync"),
    ("learn", "ENOSPC", "rename"),
    ("learn", "EIO", "unlink"),
    ("learn", "EIO", "rmdir"),
    ("learn", "EDQUOT", "mkdir"),
    ("learn", "EIO", "read"),
    ("run", "EIO", "unlink"),
    ("run", "ENOSPC", "write"),
    ("gc", "ENOSPC", "write"),
    ("rollback", "EIO", "rename"),
    ("export", "EIO", "chmod"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here to compile what makes system calls fail")
    with faulty(tmp_path_factory.mktemp("faults").resolve()) as one:
        yield one


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize(("case", "name", "kind"), KINDS)
def test_a_call_that_fails(server: Faulty, case: str, name: str, kind: str, for_good: bool) -> None:
    assert name in ERRORS
    found = [number for number, call in enumerate(server.calls(case, name), 1) if call.startswith(f"{kind} ")]
    # Another of them in either way.
    number = found[(2 if for_good else 5) * len(found) // 7]
    assert server.attempt(case, Fault(number, name, for_good)) == []
