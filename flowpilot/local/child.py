"""The first moments of a supervised child: become another user, bind to the parent's life, exec.

Runs as a script, `python -I -S child.py PARENT_PID DEATH_SIGNAL UID GID PROGRAM [ARGUMENT...]`, in
the new process itself: a `preexec_fn` is not safe in a process that has threads. Only the
standard library, and of that little: every child pays for this start.
UID and GID are -1 for "stay who you are". Exit status 127: the program could not be started.
"""

from __future__ import annotations

import os
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Ask for the death signal, become the user, run the program: argv is parent pid, signal, uid, gid, program."""
    parent, death_signal, uid, gid = (int(number) for number in arguments[:4])
    program = arguments[4:]
    if sys.platform == "linux":
        # Before the change of user, who may not be able to read the interpreter's own files.
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After the change of user: the kernel clears the death signal when credentials change.
        if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
            print("cannot bind this process to its parent's life", file=sys.stderr)
            os._exit(127)
    if os.getppid() != parent:  # the parent died before the line above took effect
        os._exit(127)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        print(f"cannot start {program[0]}: {error}", file=sys.stderr, flush=True)
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
