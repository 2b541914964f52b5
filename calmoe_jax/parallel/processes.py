"""Processes of one job: how they find each other, agree, stop together, and notice a loss."""

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from calmoe_jax._checks import check_positive
from calmoe_jax._errors import RunError, UserError

# Seconds after our own time limit at which JAX, whose words are less clear, ends the process.
_MARGIN = 30
# Bytes of an error that processes tell each other.
_LONGEST = 4096


class ProcessError(UserError):
    """The processes of a job cannot work together; the message says why."""


class PeerLostError(RunError):
    """Another process of the job has ended."""


def join_processes(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = 300.0,
    heartbeat: float = 20.0,
) -> None:
    """Joins this process to the others of its job; before anything else uses JAX.

    Without arguments Slurm, GKE and TPU pods say who the others are. On Slurm a process then has
    one GPU, that of its place on the host: there are to be as many processes as GPUs. With
    arguments nobody is asked, and a process has all devices of its host.

    A SIGTERM to any process is afterwards one to all (see `stop_is_due`). Where the others do not
    come in time the process ends with code 2 and a line that says so: JAX's own waiting can neither
    be interrupted nor fail.

    Args:
        coordinator: host and port of process 0, as in `"10.0.0.1:8476"`.
        num_processes: number of processes.
        process_id: number of this one, from 0.
        timeout: seconds to wait for the others, above 0.
        heartbeat: seconds without a sign of life after which a process counts as lost, at least 1.

    Raises:
        ProcessError: if some arguments are missing or out of range, no cluster is known or it does
            not say all, or the coordinator does not answer in time.
    """
    check_positive("timeout", timeout)
    check_positive("heartbeat", heartbeat)
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ProcessError(
            f"{missing[0]} must be given with the others of {', '.join(given)}, got none."
        )
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise ProcessError(
            f"process_id must be in [0, {num_processes}), the number of processes, got "
            f"process_id={process_id}."
        )
    start = time.monotonic()
    if coordinator is not None and process_id:
        _find(coordinator, timeout)
    left = max(1.0, timeout - (time.monotonic() - start))
    try:
        with _ending_after(left, f"not all processes came within timeout={timeout:g} seconds"):
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                cluster_detection_method="deactivate" if coordinator else None,
                initialization_timeout=round(left) + _MARGIN,
                heartbeat_timeout_seconds=max(1, round(heartbeat)),
            )
    except ValueError as error:
        raise ProcessError(
            "coordinator must be given with num_processes and process_id where no cluster (Slurm, "
            f"GKE, TPU pod) says them: {error}"
        ) from error
    except RuntimeError as error:  # of a cluster that does not say all, or of the service
        raise ProcessError(f"the processes could not join: {error}") from error


def _find(coordinator: str, timeout: float) -> None:
    """Waits until something listens where the coordinator should."""
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit()):
        raise ProcessError(
            f"coordinator must be a host and a port, as in 10.0.0.1:8476, got {coordinator!r}."
        )
    deadline, reason = time.monotonic() + timeout, ""
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            reason = str(error)
            time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))
    raise ProcessError(
        f"coordinator={coordinator} did not answer within timeout={timeout:g} seconds ({reason})."
    )


@contextlib.contextmanager
def _ending_after(seconds: float, words: str) -> Iterator[None]:
    """Ends the process with a line where the block takes longer: it waits in compiled code."""
    done = threading.Event()

    def watch() -> None:
        if not done.wait(seconds):
            os.write(2, f"calmoe: {words}.\n".encode())
            os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def check_agreement(what: dict[str, Any]) -> None:
    """Checks that all processes were given the same; alone, nothing.

    Args:
        what: plain values, such as the configuration of a run.

    Raises:
        ProcessError: on every process, with the names of what differs from process 0.
    """
    if jax.process_count() == 1:
        return
    names = sorted(what)
    digests = [hashlib.sha256(json.dumps(what[n], sort_keys=True).encode()).digest() for n in names]
    ours = np.frombuffer(b"".join(digests), np.uint8).reshape(len(names), -1)
    count = multihost_utils.process_allgather(np.array([len(names)]))
    if len(set(count.ravel().tolist())) > 1:
        raise ProcessError("all processes must have the same configuration, got different ones.")
    every = multihost_utils.process_allgather(ours)
    differing = [n for i, n in enumerate(names) if (every[:, i] != every[0, i]).any()]
    if differing:
        raise ProcessError(
            f"all processes must have the same configuration, got different {', '.join(differing)}."
        )


def raise_everywhere(error: UserError | None) -> None:
    """Raises the writer's error on every process; all must call it, and wait for the writer.

    Args:
        error: what kept the writer from going on, if anything; of the others it is not looked at.

    Raises:
        UserError: the error itself on the writer, a `ProcessError` with its words on the others.
    """
    if jax.process_count() > 1:
        words = np.zeros(_LONGEST, np.uint8)
        said = np.frombuffer(str(error or "").encode()[:_LONGEST], np.uint8)
        words[: len(said)] = said
        words = np.asarray(multihost_utils.broadcast_one_to_all(words))
        if words.any() and not is_writer():
            raise ProcessError(words.tobytes().rstrip(b"\0").decode(errors="ignore"))
    if error is not None:
        raise error


def stop_is_due(step: int) -> bool:
    """Whether all processes stop at this step, because one of them got a SIGTERM.

    All processes must ask at every step, and get the same answer.

    Args:
        step: number of the step.
    """
    if jax.process_count() == 1:
        return False
    return bool(multihost_utils.reached_preemption_sync_point(step))


def is_writer() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until every process is here.

    Args:
        name: name of the place.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def whole(tree: Any) -> Any:
    """A tree of arrays that may be sharded over processes, whole and on this host.

    Args:
        tree: the arrays; all processes must call it.
    """

    def one(x: jax.Array) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)))
        if x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x if x.is_fully_addressable else x.addressable_data(0))
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(one, tree)


def as_peer_lost(error: Exception) -> PeerLostError | None:
    """The error as that of a lost process, if it is one.

    Args:
        error: what a computation raised.
    """
    words = ("gloo", "peer", "heartbeat", "connection", "unavailable", "preempt", "coordination")
    text = str(error).lower()
    if jax.process_count() == 1 or not any(word in text for word in words):
        return None
    return PeerLostError(
        f"process {jax.process_index()}: another process of the job has ended "
        f"({str(error).splitlines()[0][:200]})"
    )
