"""The command line: exit codes, messages, and a real run that survives Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import pytest
from audit_logs import make, write
from small import small_task

from calmoe_jax import _compilation_cache, _run_command, cli, training
from calmoe_jax.data.sets import SETS
from calmoe_jax.study import runner
from calmoe_jax.study.recommended import RECOMMENDED
from calmoe_jax.study.records import read_results
from calmoe_jax.study.report import Summary, in_words

pytestmark = pytest.mark.every_case

SMALL = ("--epochs", "2", "--batch-size", "16", "--width", "8", "--experts", "3", "--seeds", "2")


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALMOE_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    def call(*arguments):
        try:
            code = cli.main(arguments)
        except SystemExit as stop:  # the parser's own errors
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "portla"), "got task='portla'. Did you mean portal?"),
        (("run", "--methods", "robst"), "got 'robst'. Did you mean robust?"),
        (("run", "--epochs", "0"), "calmoe: --epochs must be at least 1, got --epochs=0."),
        (("run", "--epochs", "x"), "Error parsing --epochs"),
        (("run", "--batch-size", "-1"), "--batch-size must be at least 1, got --batch-size=-1"),
        (("run", "--recommended", "--methods", "robust"), "--methods must not be given with"),
        (("run", "--recommended", "--routing", "hard"), "--routing must not be given with"),
        (("run", "--seeds", "0"), "--seeds must be at least 1, got --seeds=0"),
        (("run", "--seeds", "99999999999"), "--seeds must be in [1, 10000]"),
        (("run", "--eta", "0"), "--eta must be positive and finite, got --eta=0.0"),
        (("run", "--routing", "top_k", "--k", "9"), "--k must be in [1, --experts=4], got --k=9"),
        (("run", "--epoch", "3"), "--epochs"),
        (("run", "--routing", "soft"), "dense"),
        (("run", "digits16"), "mnist/train-images-idx3-ubyte.gz, "),
        (("run", "digits16"), "The command `calmoe data prepare digits16` brings it"),
        (("data",), "{list,prepare,where}"),
        (("data", "fetch"), "invalid choice"),
        (
            ("data", "prepare"),
            "calmoe: names must name at least one data set or task to bring, got none",
        ),
        (("data", "prepare", "mnits"), "calmoe: names must be of data sets or tasks (calmoe data"),
        (("data", "prepare", "mnits"), "got 'mnits'. Did you mean mnist?"),
        (("data", "list", "mnist"), "calmoe: names must be given to prepare only, got mnist"),
        (("data", "prepare", "pacs"), "pacs must be downloaded by hand: put PACS.zip or "),
        (
            ("data", "prepare", "pacs", "--manual-dir", "nowhere"),
            "--manual-dir must be a folder, got --manual-dir=nowhere",
        ),
        (
            ("data", "prepare", "pacs", "--data-dir", f"{__file__}/x"),
            "--data-dir must be in a folder that can be written to",
        ),
        (("run", "fashion_c", "--data-dir", "nowhere"), "--data-dir must be a folder"),
        (("tasks", "--data-dir", "nowhere"), "got --data-dir=nowhere"),
        (("run", "portal", "--backbone", "resnet18"), "backbone must be mlp"),
        (("run", "digits", "--backbone", "vit"), "--vit-size must have patches that divide"),
        (("report",), "folders must name at least one run"),
        (("report", "nowhere"), "there is no nowhere/results.json"),
        (("audit", "nowhere.npz"), "nowhere.npz cannot be read"),
        (("audit", "nowhere.npz", "--out", "."), "--out must be a file, got --out=."),
        (
            ("audit", "nowhere.npz", "--out", f"{__file__}/deep/x.json"),
            f"--out must be in a folder that can be written to, got --out={__file__}/deep",
        ),
        (("audit", "nowhere.npz", "--plots", __file__), "is a file"),
        (("audit",), "file must name at least one file of logs, got none"),
        (("audit", "nowhere.npz", "--report", "."), "--report must be a file, got --report=."),
        (("audit", "nowhere.npz", "--level", "1"), "--level must be in (0, 1), got --level=1.0"),
        (("audit", "nowhere.npz", "--tolerance", "1"), "--tolerance must be in [0, 1)"),
        (("audit", "nowhere.npz", "--fail-on", "all"), "uncalibrated"),
        (("audit", "nowhere.npz", "--repair", "magic"), "--repair must be one of temperature"),
        (("audit", "nowhere.npz", "--columns", "labels"), "--columns must be pairs ours=theirs"),
        (("fly",), "run, report, tasks, data, audit, label, repair, monitor, plan, doctor"),
    ],
)
def test_wrong_usage_ends_with_2_and_writes_nothing(run, arguments, message, tmp_path):
    code, out, err = run(*arguments)
    assert code == 2
    plain = " ".join((out + err).replace("│", " ").split())
    assert message in plain
    assert list(tmp_path.iterdir()) == []


def test_help_fits_one_screen_and_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    assert len(out.splitlines()) <= 24
    assert all(len(line) <= 100 for line in out.splitlines())
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)
    assert "0 done, 1 a run failed, 2 wrong usage or unusable input, 3 a gate" in out


def test_no_command_is_wrong_usage(run):
    code, out, _ = run()
    assert code == 2
    assert "usage: calmoe COMMAND" in out


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0
    assert out == f"calmoe_jax {version('calmoe_jax')}\n"


def test_compiled_programs_are_kept_where_asked_for(run, monkeypatch, tmp_path):
    """By the variable, and by the flag in the user's cache folder."""
    kept = []
    monkeypatch.setattr(_compilation_cache, "keep_compiled_programs", kept.append)
    monkeypatch.setattr(runner, "run", lambda *_, **__: (_ for _ in ()).throw(OSError("enough")))
    monkeypatch.delenv("CALMOE_CACHE_DIR", raising=False)
    run("run")
    assert kept == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run("run", "--cache")
    monkeypatch.setenv("CALMOE_CACHE_DIR", str(tmp_path / "mine"))
    run("run")
    assert kept == [tmp_path / "calmoe_jax", tmp_path / "mine"]


def test_tasks_say_what_is_here(run, tmp_path, monkeypatch):
    code, out, _ = run("tasks")
    assert code == 0
    for name in ("portal", "digits", "digits16", "fashion_c"):
        assert f"\n{name}: " in "\n" + out
    assert "1990-1993" in out
    assert "blur_1..5" in out
    assert out.count("here: comes with the package") == 2
    assert "usps/usps.npz" in out
    monkeypatch.setenv("CALMOE_DATA_DIR", str(tmp_path))
    assert f"missing in {tmp_path}" in run("tasks")[1]
    assert "calmoe data prepare newsgroups brings it" in run("tasks")[1]


def test_data_says_what_there_is_and_where(run, tmp_path, monkeypatch):
    code, out, _ = run("data", "list")
    assert code == 0
    assert out.startswith(f"In {tmp_path / 'calmoe_jax'}:\n")
    assert "  task digits16: not here: mnist, usps, optdigits\n" in out
    assert "  task portal: comes with the package\n" in out
    for name, found in SETS.items():
        assert f"\n{name}: {found.summary}\n  {found.size}; {found.licence}\n" in out
    assert out.count("\n  not here\n") == len(SETS)
    (tmp_path / "calmoe_jax" / "sentiment4").mkdir(parents=True)
    (tmp_path / "calmoe_jax" / SETS["sentiment4"].files[0]).write_bytes(b"")
    out = run("data", "list")[1]
    assert "  task sentiment: sentiment4\n" in out
    assert out.count("\n  not here\n") == len(SETS) - 1
    code, out, _ = run("data", "where")
    assert (code, out.splitlines()[0]) == (0, f"{tmp_path}/calmoe_jax: the user's folder for data")
    monkeypatch.setenv("CALMOE_DATA_DIR", "elsewhere")
    code, out, _ = run("data", "where")
    assert out.startswith("elsewhere: given by CALMOE_DATA_DIR; there is no such folder yet\n")
    assert run("data", "where", "--data-dir", "mine")[1].startswith("mine: given by --data-dir")


def test_what_is_there_is_not_brought_again(run, tmp_path):
    (tmp_path / "mine" / "sentiment4").mkdir(parents=True)
    (tmp_path / "mine" / SETS["sentiment4"].files[0]).write_bytes(b"")
    code, out, err = run("data", "prepare", "portal", "sentiment", "--data-dir", "mine")
    assert (code, err) == (0, "")
    assert out == "portal: comes with the package\nsentiment4: already in mine\n"


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_a_folder_that_is_read_only_may_hold_everything(run, tmp_path, monkeypatch):
    (tmp_path / "mine" / "sentiment4").mkdir(parents=True)
    (tmp_path / "mine" / SETS["sentiment4"].files[0]).write_bytes(b"")
    real = os.access  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, how: how != os.W_OK and real(path, how))
    code, out, err = run("data", "prepare", "sentiment", "--data-dir", "mine")
    assert (code, out, err) == (0, "sentiment4: already in mine\n", "")
    code, out, err = run("data", "prepare", "sentiment", "mnist", "--data-dir", "mine")
    assert (code, out) == (2, "")
    assert "--data-dir must be in a folder that can be written to" in err


def test_doctor(run):
    code, out, _ = run("doctor")
    assert code == 0
    assert "jax 0." in out
    assert "implementation xla: runs here" in out
    assert "implementation triton: does not: JAX's default backend is cpu, not gpu" in out
    assert "implementation pallas_tpu: does not:" in out
    assert "operation route: None means xla; kernel not runnable: " in out


@pytest.mark.exhaustive
def test_a_run_over_devices_has_a_report(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    given = "run portal --methods vanilla --seeds 1 --epochs 2 --warmup-epochs 0 --sharded --out"
    more = "--tensorboard", str(tmp_path / "events"), "--profile", str(tmp_path / "trace")
    assert cli.main([*given.split(), str(tmp_path / "run"), *more]) == 0
    assert list((tmp_path / "events").glob("*tfevents*"))
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert (tmp_path / "run" / "report.html").is_file()
    assert cli.main([*given.split(), str(tmp_path / "run")]) == 0  # it is finished
    assert "Report:" in capsys.readouterr().out
    wrong = "run portal --num-processes 2 --out"
    assert cli.main([*wrong.split(), str(tmp_path / "no")]) == 2
    assert "--num-processes must be given with --distributed" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_run_and_report(run, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "resolve_task", lambda task, data_dir: small_task())
    code, out, _ = run("run", "portal", "--methods", "vanilla", "robust", *SMALL)
    assert code == 0
    assert "Vanilla MoE: The reference." in out
    assert "Robust MoE: " in out
    assert "Report: runs/portal/report.html" in out
    assert in_words(Summary(read_results(tmp_path / "runs" / "portal"))) in out
    results = json.loads((tmp_path / "runs" / "portal" / "results.json").read_text())
    assert results["config"]["train"]["epochs"] == 2
    assert results["config"]["methods"] == ["vanilla", "robust"]
    (tmp_path / "runs" / "portal" / "report.html").unlink()
    code, out, _ = run("report", "runs/portal")
    assert (code, out) == (0, "runs/portal/report.html\n")
    code, out, _ = run("report", "runs/portal", "runs/portal", "--out", "both")
    assert (code, out) == (0, "both/report.html\n")
    code, _, err = run("run", "portal", "--methods", "vanilla", *SMALL)
    assert code == 2
    assert "another configuration" in err


@pytest.mark.exhaustive
def test_a_run_without_a_task_shows_two_and_what_is_recommended(run, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "resolve_task", lambda task, data_dir: small_task(name=task))
    monkeypatch.setattr(_run_command, "_FEWER_METHODS", ("vanilla",))
    code, out, _ = run("run", *SMALL, "--out", "both")
    assert code == 0
    at = [out.index(words) for words in ("portal: 25 years", "digits: handwritten digits")]
    assert at == sorted(at)
    assert out.count("\nRecommended: vanilla, safe (no labels of the target): ECE") == 2
    results = [
        json.loads((tmp_path / "both" / name / "results.json").read_text())
        for name in _run_command.FIRST_TASKS
    ]
    assert [len(found["methods"]) for found in results] == [7, 1]
    assert [found["task"] for found in results] == ["portal", "digits"]


@pytest.mark.exhaustive
def test_what_is_recommended_is_run_alone(run, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "resolve_task", lambda task, data_dir: small_task())
    code, out, _ = run("run", "portal", "--recommended", *SMALL)
    assert code == 0
    results = json.loads((tmp_path / "runs" / "portal" / "results.json").read_text())
    assert results["config"]["methods"] == [RECOMMENDED.method]
    assert {record["routing"] for record in results["records"]} == {RECOMMENDED.routing}
    rows = {(r["calibrator"], r["kind"]): [] for r in results["records"]}
    for record in results["records"]:
        rows[record["calibrator"], record["kind"]].append(record["ece"])
    means = (np.mean(rows[name, "shift"]) for name in (RECOMMENDED.calibrator, "none"))
    repaired, plain = (f"{mean:.3f}" for mean in means)
    assert f"ECE under shift {repaired} instead of {plain} as trained" in out


def test_a_failed_run_ends_with_1(run, monkeypatch):
    task = small_task()
    task.train.inputs[3] = 3e38
    monkeypatch.setattr(runner, "resolve_task", lambda name, data_dir: task)
    code, _, err = run("run", "--methods", "vanilla", *SMALL)
    assert code == 1
    assert "method vanilla, seed 42: " in err
    assert "is not finite at step" in err


def test_a_full_disk_ends_with_1(run, monkeypatch):
    monkeypatch.setattr(runner, "resolve_task", lambda task, data_dir: small_task())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training.log.MetricsLog, "write", full)
    code, _, err = run("run", "--methods", "vanilla", *SMALL)
    assert code == 1
    assert "No space left on device" in err


def test_a_bug_keeps_its_traceback(run, monkeypatch):
    def broken(*_, **__):
        raise KeyError("a bug")

    monkeypatch.setattr(runner, "resolve_task", broken)
    with pytest.raises(KeyError):
        run("run")


def calmoe(*arguments):
    return python("from calmoe_jax.cli import main; sys.exit(main())", *arguments)


def python(code, *arguments):
    # a shell starts background jobs with SIGINT ignored, and children inherit that
    first = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", first + code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# in the middle of an audit; and in compiled code that does not come back to Python
AUDIT = """
from calmoe_jax import audit, cli
judged = audit.audit
audit.audit = lambda logs: (print("ready", flush=True), judged(logs))[1]
sys.exit(cli.main())
"""
ENDLESS = """
import jax, jax.numpy as jnp
from calmoe_jax import cli
loop = jax.jit(lambda x: jax.lax.while_loop(lambda x: x[0] >= 0, lambda x: x + 1e-30, x))
loop = loop.lower(jnp.ones(9)).compile()
cli.COMMANDS["doctor"].__call__ = lambda self: (
    print("ready", flush=True), loop(jnp.ones(9)).block_until_ready()
)
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("number", "code", "program", "arguments"),
    [
        (signal.SIGINT, 130, AUDIT, ("audit", "logs.npz", "--out", "found.json")),
        pytest.param(signal.SIGTERM, 143, ENDLESS, ("doctor",), marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGINT, 130, ENDLESS, ("doctor",), marks=pytest.mark.exhaustive),
        pytest.param(
            signal.SIGTERM, 143, AUDIT, ("audit", "logs.npz", "--out", "found.json"),
            marks=pytest.mark.exhaustive,
        ),
    ],
)  # fmt: skip
def test_a_signal_ends_a_command_within_seconds(
    number, code, program, arguments, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    # sizes of its own: it compiles for longer than the test takes
    wide = {k: np.repeat(x, 3, axis=0)[:-1] for k, x in make().items()}
    write(tmp_path, wide)
    process = python(program, *arguments)
    try:
        assert process.stdout.readline() == "ready\n", process.communicate()
        time.sleep(0.5)
        start = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert time.monotonic() - start < 5
    assert process.returncode == code, err
    name = signal.Signals(number).name
    assert err == f"calmoe: ended by {name}. Run the same command again to resume.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["logs.npz"]


def test_handlers_of_signals_are_put_back(run):
    before = [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]
    pipe = signal.set_wakeup_fd(-1)
    assert run("tasks")[0] == 0
    assert [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(pipe) == -1


def test_interrupted_commands_called_from_python_return_their_code(run, monkeypatch):
    def interrupted(_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(cli.Doctor, "__call__", interrupted)
    code, _, err = run("doctor")
    assert code == 143
    assert err.startswith("calmoe: ended by SIGTERM.")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_end(tmp_path):
    given = "portal --methods vanilla --seeds 2 --epochs 40 --checkpoint-every 15"
    options = given.split()
    whole = calmoe("run", *options, "--out", str(tmp_path / "whole"))
    assert whole.wait(timeout=300) == 0, whole.stderr.read()
    whole.communicate()
    log = tmp_path / "cut" / "metrics.jsonl"
    # twice, in two ways: a run that went on may be cut again
    for number, code, written in ((signal.SIGINT, 130, 2000), (signal.SIGTERM, 143, 6000)):
        cut = calmoe("run", *options, "--out", str(tmp_path / "cut"))
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not (log.exists() and len(log.read_text()) > written):
            time.sleep(0.02)
        cut.send_signal(number)
        _, err = cut.communicate(timeout=60)
        assert cut.returncode == code, err
        assert "Run the same command again to resume" in err
        assert not (tmp_path / "cut" / "results.json").exists()
    resumed = calmoe("run", *options, "--out", str(tmp_path / "cut"))
    resumed.communicate(timeout=300)
    assert resumed.returncode == 0
    for name in ("results.json", "metrics.jsonl"):
        whole_bytes = (tmp_path / "whole" / name).read_bytes()
        assert whole_bytes == (tmp_path / "cut" / name).read_bytes(), name
