"""Kills streams of three tasks and compares what comes out after resuming: ``make torture KILLS=200``.

Passings of fault points of all cases, in an order drawn from the seed, alternate with random moments; at those a
stream may be killed several times. The last line is ``N kills, N identical``; the exit code is 1 if
any stream came out different.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from killing import KILLED, Killer, killer

CASES = ("seekr", "derpp", "official", "replay", "ewc", "lora", "learn")


def attempt(server: Killer, case: str, fault: str, draw: random.Random) -> tuple[int, list[str]]:
    """One stream, killed at a fault point or, if none is given, at one to three random moments."""
    folder, before = server.fresh(), server.kills
    if fault:
        code = server.ask(folder, case, fault)["code"]
        assert code == KILLED, f"{case}: {fault} was never passed"
    else:
        for _ in range(draw.randint(1, 3)):
            server.ask(folder, case, after=draw.uniform(0.02, 0.9) * server.whole(case)[2])
    server.ask(folder, case)
    return server.kills - before, server.differences(folder, case)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, kills, identical = random.Random(given.seed), 0, 0
    with tempfile.TemporaryDirectory() as place, killer(Path(place)) as server:
        points = [(case, fault) for case in CASES for fault in server.occurrences(case)]
        print(f"{len(points)} passings of fault points in {len(CASES)} cases", flush=True)
        draw.shuffle(points)
        for number in range(1_000_000):
            if kills >= given.kills:
                break
            case, fault = points[number // 2 % len(points)] if number % 2 else (CASES[number // 2 % len(CASES)], "")
            more, different = attempt(server, case, fault, draw)
            kills += more
            identical += 0 if different else more
            if different or number % 20 == 0:
                print(f"{kills} kills: {case} {fault or 'random'} {different or 'identical'}", flush=True)
    print(f"{kills} kills, {identical} identical")
    return int(kills != identical)


if __name__ == "__main__":
    sys.exit(main())
