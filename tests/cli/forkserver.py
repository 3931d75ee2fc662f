"""Runs ``seekr`` commands as processes of their own without paying five seconds of imports for each.

The interpreter imports the library once and forks for every request, a JSON line with ``arguments``, ``folder``,
``out`` and ``err``; the child is what ``python -m seekr_cl`` would be after its imports. The answer is the exit code.
"""

import json
import os
import sys
import traceback

import seekr_cl.cli.commands  # noqa: F401
from seekr_cl.cli.main import main


def child(request: dict) -> None:
    for number, key in ((1, "out"), (2, "err")):
        handle = os.open(request[key], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(request["folder"])
    code = 1
    try:
        code = main(request["arguments"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    print("ready", flush=True)
    # Not sys.stdin: what it has read ahead would be read again by the child.
    while line := sys.stdin.readline():
        process = os.fork()
        if process == 0:
            child(json.loads(line))
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
