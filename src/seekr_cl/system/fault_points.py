"""Named places at which a test can kill the process, to see that nothing is lost.

``SEEKR_FAULT="checkpoint.written:3"`` in the environment sends SIGKILL to the process itself when that place is passed
for the third time: no handler runs, no buffer is flushed, as when the power fails. Without the variable a place costs
one addition.
"""

import os
import signal
from collections import Counter

VARIABLE = "SEEKR_FAULT"

passed: Counter[str] = Counter()
"""How often each place has been passed in this process."""


def fault_point(name: str) -> None:
    """Marks a place; kills the process here if the environment asks for this occurrence."""
    passed[name] += 1
    wanted, _, count = os.environ.get(VARIABLE, "").rpartition(":")
    if wanted == name and count == str(passed[name]):
        os.kill(os.getpid(), signal.SIGKILL)
