"""``geoclip`` in forks of one process that has imported what the commands need, which takes them seconds each.

Not a test. ``forked_commands.py serve SOCKET`` is that process; ``forked_commands.py run SOCKET WORDS...`` is the
command: it hands its words, environment, folder and standard streams to a fork, and ends as that does.
"""

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

IMPORTED = ["open_geoclip.cli", "open_geoclip.search.locator", "openvino", "pandas", "rich", "scipy.spatial", "shapely"]
_SIZE = 4  # bytes of the length before a request


def run(address: str, words: Sequence[str]) -> int:
    """Run a command in a fork, and return its exit status."""
    folder = os.open(".", os.O_RDONLY)
    request = json.dumps({"words": words, "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [len(request).to_bytes(_SIZE, "big")], [0, 1, 2, folder])
        server.sendall(request)
        status = server.recv(1)
    return status[0] if status else 1


def serve(address: str) -> None:
    """Answer requests until the process is killed; says on stdout when it is ready."""
    for name in IMPORTED:
        with suppress(ImportError):  # of an extra
            import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:  # those of earlier commands
                    pass
            if os.fork() == 0:
                listener.close()
                _watch(client)
            client.close()


def _watch(client: socket.socket) -> None:
    """Fork the command; report its exit status, or kill it if its client is gone."""
    head, (*streams, folder), _, _ = socket.recv_fds(client, _SIZE, 4)
    with client.makefile("rb") as file:
        request = json.loads(file.read(int.from_bytes(head, "big")))
    pid = os.fork()
    if pid == 0:
        client.close()
        _command(streams, folder, **request)
    ended = os.pidfd_open(pid)
    if ended not in select.select([client.fileno(), ended], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    client.sendall(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def _command(streams: Sequence[int], folder: int, words: Sequence[str], environment: dict[str, str]) -> None:
    """Run the command in this process, which ends with it."""
    from open_geoclip.cli import main

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.fchdir(folder)
    os.close(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["geoclip", *words]
    main()
    sys.exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(run(sys.argv[2], sys.argv[3:]))
