"""Some system calls of commands fail, each of another kind; ``benchmarks/syscall_faults.py`` does it at length."""

import shutil
from collections.abc import Iterator

import pytest
from faulty import ERRORS, Fault, Faulty, faulty

KINDS = [
    ("learn", "ENOSPC", "open", True),
    ("learn", "EDQUOT", "write", False),
    ("learn", "EIO", "fsync", True),
    ("learn", "ENOSPC", "rename", False),
    ("learn", "EIO", "rmdir", True),
    ("learn", "EDQUOT", "mkdir", False),
    ("learn", "EIO", "read", True),
    ("run", "EIO", "unlink", True),
    ("gc", "ENOSPC", "write", True),
    ("rollback", "EIO", "rename", True),
    ("export", "EIO", "chmod", False),
]
"""Case, error, kind of call, and whether all later calls fail too."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here to compile what makes system calls fail")
    with faulty(tmp_path_factory.mktemp("faults").resolve()) as one:
        yield one


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name", "kind", "for_good"), KINDS)
def test_a_call_that_fails(server: Faulty, case: str, name: str, kind: str, for_good: bool) -> None:
    assert name in ERRORS
    found = [number for number, call in enumerate(server.calls(case, name), 1) if call.startswith(f"{kind} ")]
    number = found[5 * len(found) // 7]
    assert server.attempt(case, Fault(number, name, for_good)) == []
