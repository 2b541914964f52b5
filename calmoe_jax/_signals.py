"""Ends a command on Ctrl-C or SIGTERM within seconds, also while compiled code runs.

Python runs signal handlers in the main thread, between bytecodes: while that waits for compiled
code, minutes may pass. So a second thread reads the pipe that the C-level handler writes to. It
gives the main thread a few seconds to stop in good order, by the `Stopped` that the handler raises
there, and then ends the process. Files appear by renaming, so that none is left half-written.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds that the main thread has to stop by itself.
_GRACE = 3.0


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end.

    Attributes:
        code: exit code of a process that the signal ends, as shells give it: 130 or 143.
        words: a line that says so.
    """

    def __init__(self, number: int, place: str = "") -> None:
        name = signal.Signals(number).name
        self.code = 128 + number
        self.words = f"calmoe: ended by {name}{place}. Run the same command again to resume."
        super().__init__(self.words)


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Raises `Stopped` in the main thread on the first signal; ends the process if that hangs.

    A signal that the process was started to ignore (as `nohup` does) stays ignored. Outside the
    main thread, which alone can handle signals, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        stopping.append(number)
        if len(stopping) == 1:  # nothing interrupts what stops already
            raise Stopped(number)

    read, written = socket.socketpair()
    written.setblocking(False)
    former = {number: signal.getsignal(number) for number in _SIGNALS}
    handled = [number for number in _SIGNALS if former[number] != signal.SIG_IGN]
    pipe = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()
    try:
        for number in handled:
            signal.signal(number, stop)
        yield
    finally:
        for number in handled:
            signal.signal(number, former[number])
        signal.set_wakeup_fd(pipe)
        written.close()  # the thread reads the end, and ends


def _watch(pipe: socket.socket) -> None:
    """Waits for a signal; ends the process if the pipe is still open after the time of grace."""
    with pipe:
        number = 0
        while number not in _SIGNALS:
            received = pipe.recv(1)
            if not received:
                return
            number = received[0]
        deadline = time.monotonic() + _GRACE
        with contextlib.suppress(TimeoutError):
            while (left := deadline - time.monotonic()) > 0:
                pipe.settimeout(left)
                if not pipe.recv(64):
                    return
    stopped = Stopped(number)
    os.write(2, f"{stopped.words}\n".encode())
    os._exit(stopped.code)
