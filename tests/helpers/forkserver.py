"""Runs ``seekr`` commands as processes of their own without paying five seconds of imports for each.

The interpreter imports the library once and forks for every request, a JSON line with ``arguments``, ``folder`` and
``processes``, each with ``out``, ``err`` and its own part of the ``environment``; a child is what
``python -m seekr_cl`` would be after its imports. The answer is a list of exit codes.
"""

import gc
import json
import os
import sys
import traceback

import seekr_cl.cli.commands  # noqa: F401


def child(request: dict, process: dict) -> None:
    for number, key in ((1, "out"), (2, "err")):
        handle = os.open(process[key], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(request["folder"])
    os.environ.update(process["environment"])
    code = 1
    try:
        # Only now: it reads from the environment which of several processes it is.
        from seekr_cl.cli.main import main

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
    # The children inherit it: the collector need not walk what was imported.
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    # Not sys.stdin: what it has read ahead would be read again by the child.
    while line := sys.stdin.readline():
        request = json.loads(line)
        children = []
        for process in request["processes"]:
            children.append(os.fork())
            if children[-1] == 0:
                child(request, process)
        codes = [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    serve()
