"""A Python that has imported torch and fairseq already, for the programs that tests start.

Both imports take seconds of work in every process. Here a server has imported them, and a small
program hands it arguments, folder, environment and streams, which it runs in a fork of itself.
Nothing of ``deltasam_fairseq`` has been imported before that. The fork ends when the small
program is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

CLIENT = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(request)
    status = int(server.recv(16))
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@contextlib.contextmanager
def warm_python() -> Iterator[str]:
    """Start the server, and end it afterwards.

    Yields:
        The program, which takes ``-m MODULE``, ``-c CODE`` or a file, as ``python`` does.
    """
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket has to be short
        client, address = Path(folder, "python"), str(Path(folder, "server"))
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        command = [sys.executable, __file__, address]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield str(client)
            server.terminate()


def serve(address: str) -> None:
    """Answer every request in a fork of this process."""
    import fairseq.trainer  # noqa: F401

    logging.root.handlers.clear()  # programs of fairseq set them up, before they import it
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                # A fork of the fork answers, so that the server has nobody to wait for.
                if os.fork() == 0:
                    _answer(connection)
                os._exit(0)
            os.wait()
            connection.close()


def _answer(connection: socket.socket) -> None:
    length, streams, *_ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as rest:
        arguments, folder, environment = json.loads(rest.read(int.from_bytes(length, "big")))
    child = os.fork()
    if child == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        # Taking an interpreter with these imports down would take a second.
        os._exit(_status(arguments))
    for stream in streams:
        os.close(stream)

    threading.Thread(target=_kill_without_client, args=(connection, child), daemon=True).start()
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _kill_without_client(connection: socket.socket, child: int) -> None:
    connection.recv(1)  # which the client never sends
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def _status(arguments: list[str]) -> int:
    try:
        _run(arguments)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
    return 0


def _run(arguments: list[str]) -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = ["", *filter(None, own)]
    match arguments:
        case ["-m", module, *_]:
            sys.argv = arguments[1:]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *_]:
            sys.argv = ["-c", *arguments[2:]]
            exec(code, {"__name__": "__main__"})
        case [file, *_]:
            sys.argv = arguments
            runpy.run_path(file, run_name="__main__")


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder
    serve(sys.argv[1])
