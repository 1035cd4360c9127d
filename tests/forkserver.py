"""A substitute for ``python`` that starts in milliseconds, by forking a server that has already imported torch.

    python -S -I forkserver.py SOCKET [-P] (-m MODULE | -c CODE | SCRIPT) ...

runs a program like ``python``, with this process's arguments, environment, working folder and standard streams. This
process forwards signals to the program and exits with its status; if this process is killed, so is the program. The
server does not import vitctl; each program does.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
WATCHED = "VITCTL_WATCH_FD"  # environment variable with the only other file descriptor that a program may inherit


def main() -> None:
    """Ask the server to run a program, and exit with its status."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    descriptors = [0, 1, 2, *([int(os.environ[WATCHED])] if WATCHED in os.environ else [])]
    request = json.dumps([sys.argv[2:], dict(os.environ), os.getcwd(), descriptors]).encode()
    for signum in FORWARDED:
        if signum == signal.SIGINT or signal.getsignal(signum) != signal.SIG_IGN:  # as in vitctl.process.signals
            signal.signal(signum, lambda number, _: connection.send(bytes([number])))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    connection.sendmsg([len(request).to_bytes(4, "big")], [rights])
    connection.sendall(request)
    for descriptor in descriptors:
        os.close(descriptor)
    status = int(connection.recv(16))
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL cannot have a handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(path: str, controller: int) -> None:
    """Start a server that forks a process for each program, and end the calling process when it listens.

    Args:
        path: path of the socket.
        controller: process id; the server ends when this process does.
    """
    import gc
    import runpy

    import numpy
    import optuna.storages
    import PIL.Image
    import sklearn.datasets
    import sqlalchemy
    import timm
    import torch
    import torchvision
    import typer
    import wandb
    import yaml

    del numpy, optuna, PIL, sklearn, sqlalchemy, timm, torch, torchvision, typer, wandb, yaml
    gc.collect()
    gc.freeze()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    if os.fork():
        os._exit(0)  # ready
    os.setsid()
    sys.pycache_prefix, sys.dont_write_bytecode = f"{path}-pycache", False  # only one program compiles a module
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the children, so let the system reap them
    while True:
        while not select.select([listening], [], [], 0.5)[0]:
            try:
                os.kill(controller, 0)
            except ProcessLookupError:
                return
        connection, _ = listening.accept()
        if os.fork() == 0:
            break
        connection.close()
    listening.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    words = keep(connection)
    status = 0
    try:
        if words[0] == "-P":
            del words[0], sys.path[0]
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
        else:
            sys.argv = words
            sys.path[0] = os.path.dirname(words[0])
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - like python itself
        traceback.print_exc()
        status = 1
    # Exit like python, but without freeing all imported objects, which would copy their pages.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


def keep(connection: socket.socket) -> list[str]:
    """Fork the program's process and return in it; the parent stays to forward signals and the exit status."""
    head, descriptors, _, _ = socket.recv_fds(connection, 4, 8)
    request = b""
    while len(request) < int.from_bytes(head, "big"):
        request += connection.recv(1 << 20)
    words, environment, folder, numbers = json.loads(request)
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.setsid()
        high = [os.dup2(descriptor, 100 + i) for i, descriptor in enumerate(descriptors)]
        for descriptor in descriptors:
            os.close(descriptor)
        for descriptor, number in zip(high, numbers, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.path[0] = folder
        return words
    for descriptor in descriptors:
        os.close(descriptor)

    def listen() -> None:
        with contextlib.suppress(ProcessLookupError):
            while signum := connection.recv(1):
                os.kill(pid, signum[0])
            os.kill(pid, signal.SIGKILL)

    threading.Thread(target=listen, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        connection.send(str(status).encode())
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
