"""Runs ``seekr`` commands as processes of their own without paying five seconds of imports for each.

The interpreter imports the library once and forks for every request, a JSON line with ``arguments``, ``folder`` and
``processes``, each with ``out``, ``err`` and its own part of the ``environment``; a child is what
``python -m seekr_cl`` would be after its imports. The answer is a list of exit codes.
"""

import ctypes
import gc
import json
import os
import sys
import tempfile
import traceback

import seekr_cl.cli.commands
import seekr_cl.report.plots  # noqa: F401


def child(request: dict, process: dict) -> None:
    for number, key in ((1, "out"), (2, "err")):
        handle = os.open(process[key], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(request["folder"])
    os.environ.update(process["environment"])
    tempfile.tempdir = None
    if process.get("powerless"):
        give_up_rights()
    fault = process.get("fault")
    if fault:
        # Of the shim that this process was started with (``faulty``).
        texts = (fault["folder"], fault["kinds"], fault["log"])
        below, kinds, log = (text.encode() for text in texts)
        number, code = ctypes.c_long(fault["number"]), ctypes.c_int(fault["errno"])
        ctypes.CDLL(None).fault_arm(below, number, code, ctypes.c_int(fault["for_good"]), kinds, log)
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


def give_up_rights() -> None:
    """Makes permissions count for root too: without capabilities it is its files' owner and no more."""
    version, none = 0x20080522, 0
    if os.geteuid() == 0 and ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)(none)):
        raise OSError("capabilities cannot be given up")


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
