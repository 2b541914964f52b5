"""Jobs of several processes on this machine."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(**more):
    """The environment of a process that finds this library and these helpers, on CPUs."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", HELPERS)))
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths, **more}


class Job:
    """Processes of one job; what they say is read as it comes."""

    def __init__(self, arguments, environments):
        """Starts a Python process with the arguments, and in the environment, of each."""
        self.processes = [
            subprocess.Popen(
                [sys.executable, *map(str, given)], env=environment(**env), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for given, env in zip(arguments, environments, strict=True)
        ]  # fmt: skip

    def wait_for(self, words, number=0):
        """Whether the words came before the process ended."""
        return any(words in line for line in self.processes[number].stdout)

    def wait_until(self, holds, timeout=120):
        """Waits while all processes run; where one ends first, or it takes too long, all do."""
        deadline = time.monotonic() + timeout
        while not holds():
            if any(each.poll() is not None for each in self.processes) or (
                time.monotonic() > deadline
            ):
                for each in self.processes:
                    each.kill()
                raise AssertionError(self.end())
            time.sleep(0.02)

    def end(self, timeout=120):
        """Exit codes and what was said."""
        said = []
        for each in self.processes:
            try:
                said.append(each.communicate(timeout=timeout)[0])
            finally:
                each.kill()
        return [each.returncode for each in self.processes], said
