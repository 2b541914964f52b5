"""Several trainings at once, each in a thread: small networks leave a CPU's cores idle."""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from tqdm import tqdm

AT_ONCE = 2
_Result = TypeVar("_Result")


def run_at_once(
    calls: Sequence[Callable[[], _Result]], number: int, *, unit: str, title: str
) -> list[_Result]:
    """The results of all calls, in their order, with a bar of those that are done.

    The first failure is raised once the calls that run then have ended; no other one starts.

    Args:
        calls: that do not depend on one another.
        number: of calls at a time, at least 1.
        unit: a call, in the bar's words.
        title: of the bar.
    """
    pool = ThreadPoolExecutor(number)
    try:
        running = [pool.submit(call) for call in calls]
        for done in tqdm(
            as_completed(running), total=len(running), unit=unit, disable=None, desc=title
        ):
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return [done.result() for done in running]


def add_option(parser: argparse.ArgumentParser) -> None:
    """Gives a command the option `--at-once`.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "--at-once", type=_number, default=AT_ONCE, metavar="N",
        help="trainings at a time; 1 where an accelerator does the work",
    )  # fmt: skip


def _number(given: str) -> int:
    try:
        number = int(given)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {given!r}")
    return number
