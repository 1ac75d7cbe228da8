"""Processes that start at once: children of one that has imported what they need. Torch takes seconds to import."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300  # seconds, after which a child that hangs is ended


class Child:
    """A process; `output` is the pipe of what it prints, errors too."""

    def __init__(self, forks: Forks, pid: int, output: IO[str]) -> None:
        self.forks, self.pid, self.output = forks, pid, output

    def finish(self) -> tuple[int, str]:
        """Waits for its end: the exit code, or minus the signal that ended it, and what it had still to say."""
        with self.output:
            said = self.output.read()
        return self.forks.ask(self.pid), said


class Forks:
    """A process that imports `modules` and then forks; on one thread, so that nothing is lost by the fork."""

    def __init__(self, *modules: str) -> None:
        self.door, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.forks", str(theirs.fileno()), *modules]
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self.door.close()
        self.process.wait()

    def start(self, code: str, *arguments: object, **environment: object) -> Child:
        """`python -c code *arguments` in the root of the repository, with more variables of the environment."""
        ours, theirs = os.pipe()
        variables = {name: str(value) for name, value in environment.items()}
        pid = self.ask([code, [str(word) for word in arguments], variables], theirs)
        os.close(theirs)
        return Child(self, pid, open(ours, encoding="utf-8"))

    def ask(self, what: object, *pipes: int) -> int:
        socket.send_fds(self.door, [json.dumps(what).encode()], pipes)
        return int(self.door.recv(32))


def serve(door: socket.socket) -> None:
    """Answers [code, arguments, environment], which comes with a pipe, by a child's number, a number by its end."""
    while words := socket.recv_fds(door, 1 << 16, 1):
        message, pipes = words[:2]
        if not message:
            return
        asked = json.loads(message)
        if not pipes:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1])
        elif answer := os.fork():
            os.close(pipes[0])
        else:
            door.close()
            return become(*asked, pipes[0])
        door.send(str(answer).encode())


def become(code: str, arguments: list[str], environment: dict[str, str], pipe: int) -> None:
    signal.alarm(LIMIT)
    os.dup2(pipe, 1)
    os.dup2(pipe, 2)
    os.close(pipe)
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<child>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    serve(socket.socket(fileno=int(sys.argv[1])))
