"""The warm server: a bare interpreter that forks candidates, one at a time. It never runs their code.

Runs in Python 3.9 or later, without site-packages unless a benchmark's own interpreter has them. It holds nothing of a
candidate: the parent sends the program, the calls and the token through pipes that only pass through here.

    server          waits for jobs; looks at the candidate's processes; kills and reaps what is left
    └── init        level namespaces only: process 1 in there; when it ends the kernel kills all the rest
        └── candidate    confined, then runs the code; at the other levels it is the server's own child

Messages to the parent: `hello`, `ready` (the candidate starts), `exit STATUS`, `excess STATUS TEXT`, `fault TEXT`,
`done` (nothing is left). The candidate has no part in them. From the parent: a job with its two pipes, `end`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys

from . import jobs, processes
from .confine import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, prctl


def main() -> None:
    """Serve one job after the other until the parent is gone."""
    base, settings = sys.argv[2], json.loads(sys.argv[3])
    control = socket.socket(fileno=jobs.out_of_the_way(int(sys.argv[1])))
    try:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        walls = jobs.Walls(settings["level"], base, settings["libraries"], settings["tools"])
        for name in settings["preload"]:
            importlib.import_module(name)
        prctl(PR_SET_DUMPABLE, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # it is waited for
        gc.collect()
        gc.freeze()
        control.send(b"hello")
        while True:
            message, channels, _, _ = socket.recv_fds(control, jobs.MESSAGE, 2)
            if not message:
                break
            if message != b"end":  # of a job that had just come to its own
                jobs.Job(control, walls, channels, **json.loads(message)).work()
    except BaseException as error:
        jobs.fault(control, error)
    finally:
        processes.kill_below()
        with contextlib.suppress(OSError):
            jobs.remove(base)
        os._exit(0)
