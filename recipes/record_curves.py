"""Records the reference curves of tests/invariants: ``python recipes/record_curves.py [CASE ...]``.

Without a case: all that have no record yet, and records of cases that are no more are removed. A test learns every case
again and compares. Numbers that nobody could get again are of no use, so whatever is not committed, the records
themselves aside, is refused.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
sys.path[:0] = [str(ROOT / "src"), str(TESTS / "helpers")]


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def uncommitted(records: Path) -> list[str]:
    """Files that differ from the commit, but for the records."""
    lines = git("status", "--porcelain", "--untracked-files=all").splitlines()
    return [line[3:] for line in lines if not line[3:].startswith(f"{records.relative_to(ROOT)}/")]


def origin() -> dict[str, str]:
    """Where the numbers come from."""
    import torch
    import transformers

    return {
        "commit": git("rev-parse", "HEAD").strip(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: those without a record")
    parser.add_argument("--all", action="store_true", help="every case")
    asked = parser.parse_args()

    from recorded import RECORDED, curves, record_of, write_record

    from cases import CASES, settings_of, words_of

    if unknown := [name for name in asked.cases if name not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    if changed := uncommitted(RECORDED):
        parser.error(f"commit or remove first: {', '.join(changed)}")

    import torch
    from pair import learn_two
    from tinylm import save_base

    # The number of threads decides in which order numbers are summed up.
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    missing = [name for name in CASES if not record_of(name).exists()]
    names = list(CASES) if asked.all else asked.cases or missing
    for path in RECORDED.glob("*.json"):
        if path.stem not in CASES:
            path.unlink()
            print(f"{path.relative_to(ROOT)}: removed")
    with tempfile.TemporaryDirectory() as place:
        base = save_base(Path(place) / "base")
        for name in names:
            folder = Path(place) / name
            learn_two(base, folder, words_of(name), settings_of(CASES[name], 4))
            print(f"{write_record(name, curves(folder), origin()).relative_to(ROOT)}: recorded")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
