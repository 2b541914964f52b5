"""`calmoe run --distributed` in two processes: found by Slurm or a TPU pod, stopped, and lost."""

import re
import signal
import time

import pytest
from jobs import Job, free_port

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

COUNT = 2
RUN = (
    "run small:small_task --methods vanilla --seeds 1 --epochs 60 --warmup-epochs 0 "
    "--batch-size 16 --checkpoint-every 5 --width 8 --depth 1 --router-hidden 8 --distributed "
    "--timeout 60 --heartbeat 10 --out"
).split()
PLAIN = "import sys; from calmoe_jax.cli import main; sys.exit(main())"
# what JAX knows of a TPU's host is there; the host is not
POD = "import jax._src.clusters.cloud_tpu_cluster as pod; pod.running_in_cloud_tpu_vm = True; "


def slurm(number, port):
    """What Slurm says to a process of a step."""
    return PLAIN, {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(COUNT),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "JAX_COORDINATOR_PORT": str(port),
    }


def gke(number, port):
    """What GKE says to the hosts of two TPU slices of one host each."""
    return POD + PLAIN, {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "127.0.0.1",
        "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1",
        "MEGASCALE_NUM_SLICES": str(COUNT),
        "MEGASCALE_SLICE_ID": str(number),
        "JAX_COORDINATOR_PORT": str(port),
    }


def job(out, cluster=slurm, more=()):
    """The command in two processes that a cluster started."""
    port = free_port()
    programs, said = zip(*(cluster(number, port) for number in range(COUNT)), strict=True)
    return Job(
        [("-c", program, *RUN, out, *more) for program in programs],
        [{"JAX_NUM_CPU_DEVICES": "2", **each} for each in said],
    )


def cut_after(out, epochs):
    """The command, once it has written some epochs."""
    started, log = job(out), out / "metrics.jsonl"
    started.wait_until(lambda: log.is_file() and log.read_text().count("\n") >= epochs)
    return started


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    codes, said = job(out).end(240)
    assert codes == [0, 0], said
    assert [f"Report: {out / 'report.html'}" in printed for printed in said] == [True, False]
    return out


def assert_same_run(out, whole):
    for name in ("metrics.jsonl", "results.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_hosts_of_two_slices_find_each_other(tmp_path, whole):
    codes, said = job(tmp_path / "out", gke).end(240)
    assert codes == [0, 0], said
    assert_same_run(tmp_path / "out", whole)


def test_a_folder_of_another_run_is_refused_by_both(whole):
    codes, said = job(whole, more=("--eta", "3")).end()
    assert codes == [2, 2], said
    for each in said:
        assert f"calmoe: {whole} holds a run of another configuration: train.eta is 2.0" in each


def test_a_signal_to_one_stops_both_at_one_step(tmp_path, whole):
    out = tmp_path / "out"
    cut = cut_after(out, 8)
    cut.processes[1].send_signal(signal.SIGTERM)
    codes, said = cut.end()
    assert codes == [143, 143], said
    places = [re.findall("vanilla, seed 42, is saved at step (\\d+)", each) for each in said]
    assert len(places[0]) == 1, said
    assert places[0] == places[1]
    codes, said = job(out).end(240)
    assert codes == [0, 0], said
    assert_same_run(out, whole)


def test_the_other_says_that_one_is_lost(tmp_path, whole):
    out = tmp_path / "out"
    cut = cut_after(out, 12)
    cut.processes[1].kill()
    start = time.monotonic()
    assert cut.processes[0].wait(30) != 0
    assert time.monotonic() - start < 30
    said = cut.end()[1][0]
    # Gloo may abort the process in the middle of an exchange, before Python can say it
    ways = "another process of the job has ended", "distributed service", "gloo::EnforceNotMet"
    assert any(words in said for words in ways), said
    assert not (out / "results.json").exists()
    codes, said = job(out).end(240)
    assert codes == [0, 0], said
    assert_same_run(out, whole)
