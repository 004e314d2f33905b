"""python -I limited.py FD SECONDS MEGABYTES: runs the pieces of code on standard input one after another, and writes
to FD which of them ended without an error. It sets its own limits first; `rlhf.rewards.code_check` starts it."""

import ast
import os
import resource
import sys


def main() -> None:
    fd, seconds, megabytes = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    token, pieces = ast.literal_eval(sys.stdin.buffer.read().decode("utf-8"))
    memory, cpu = megabytes * 2**20, int(seconds) + 1
    for limit, value in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 2**20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))
    names = {"__name__": "answer"}
    for number, piece in enumerate(pieces):
        try:
            exec(compile(piece, "<test>" if number else "<code>", "exec"), names)
        except BaseException as error:
            ended = isinstance(error, SystemExit) and not error.code and not number  # a script may end itself
            if not ended and not number:
                os._exit(1)
            if not ended:
                continue
        os.write(fd, f"{token} {number}\n".encode())
    os._exit(0)


main()
