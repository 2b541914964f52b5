"""Everything that a GPU machine can prove, in one command of less than 8 minutes.

`python -m benchmarks.gpu_check [--out FILE] [--results FOLDER] [--wheel PATH] [--seconds N]
[--commit SHA]`

Needs jax, flax, optax, numpy, scipy, jaxtyping, pytest and triton; jax-triton may be given as a
wheel, which is unpacked and not installed. Runs the tests of dispatch, compute-sanitizer over a
small problem where it is on the PATH, and the benchmarks with their bounds. Without a GPU it prints
that, and tests the command itself: the tests with the implementations that run here, and the
benchmarks of two problems. The tests are shared among processes; those that would begin too late
are skipped and counted. One JSON file holds everything, and is written after each stage.

On a GPU the measurements of the kernels go to `benchmarks/results` too, in a file for this kind of
device: once committed, it is what `implementation=None` rests on. The README there has its schema.
"""

import argparse
import ast
import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HELPERS = ROOT / "tests" / "helpers"
TESTS = (
    "moe/test_*.py", "routing/test_routing.py", "kernels/test_selection.py",
    "kernels/test_layout.py", "reweighting/test_dual.py", "reweighting/test_balance.py",
)  # fmt: skip
_CPU_PROBLEMS = ("tiny", "v_moe")
_RAGGED = ("64 groups", "qwen3_moe")
_RAGGED_FLAGS = (
    "xla_gpu_experimental_use_ragged_dot_fusion",
    "xla_gpu_experimental_use_ragged_dot_grouped_gemm",
)
_KEPT_LINES = 400
_SHARED_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "0"}

# pytest as pyproject.toml has it, without the plugins that may be missing
_PYTEST = (
    "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", "-p", "benchmarks.shards",
    "-o", "addopts=", "-o", "filterwarnings=default", "--import-mode=importlib",
    "-m", "not slow and not exhaustive",
)  # fmt: skip

# Stands in for hypothesis where it is missing: its tests are skipped, those beside them run.
HYPOTHESIS = """
import pytest

class _Anything:
    def __call__(self, *args, **kwargs): return self
    def __getattr__(self, name): return self
    def __or__(self, other): return self

class settings:
    def __init__(self, *args, **kwargs): pass
    def __call__(self, function): return function
    register_profile = load_profile = staticmethod(lambda *args, **kwargs: None)

def given(*args, **kwargs): return pytest.mark.skip(reason="hypothesis is not installed")
def __getattr__(name): return _Anything()
"""


class Part(NamedTuple):
    """One command.

    Attributes:
        name: as in the JSON.
        command: a command; `{seconds}` becomes the time in which it should end by itself.
        variables: of its own environment, with the same.
        out: JSON that it writes, if it does.
    """

    name: str
    command: tuple[str, ...]
    variables: Mapping[str, str] = MappingProxyType({})
    out: Path | None = None


class Stage(NamedTuple):
    """Parts that run side by side.

    Attributes:
        parts: commands.
        share: share of the time that is left when they start.
    """

    parts: tuple[Part, ...]
    share: float


def missing_modules(path: Path) -> set[str]:
    """Modules that a test or its helpers import at the top and that are not installed."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    missing = set()
    for name in names:
        helper = HELPERS / f"{name}.py"
        if helper.is_file():
            missing |= missing_modules(helper)
        elif not (ROOT / name).is_dir() and not (ROOT / "kernels" / name).is_dir():
            missing |= {name} if find_spec(name) is None else set()
    return missing


def choose_tests(folder: Path, *, stood_in: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The test files that can be collected here, and why the others cannot.

    Args:
        folder: folder of the tests.
        stood_in: modules that something stands in for.

    Returns:
        Files, and reasons by file.
    """
    chosen, skipped = [], {}
    names: list[str] = []
    for pattern in TESTS:
        found = sorted(str(path.relative_to(folder)) for path in folder.glob(pattern))
        names += found
        if not found:
            skipped[pattern] = "there is no such file"
    names += [
        str(p.relative_to(folder))
        for p in sorted(folder.rglob("test_*.py"))
        if "mark.gpu" in p.read_text()
    ]
    for name in dict.fromkeys(names):
        missing = sorted(missing_modules(folder / name).difference(stood_in))
        if missing:
            skipped[name] = f"{', '.join(missing)} not installed"
        else:
            chosen.append(f"{folder.name}/{name}")
    return chosen, skipped


@contextlib.contextmanager
def import_path(wheels: Sequence[Path]) -> Iterator[list[str]]:
    """Folders for PYTHONPATH: the checkout, unpacked wheels, what stands in for hypothesis."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / "wheels")
        paths = [str(ROOT), str(ROOT / "kernels"), str(HELPERS), str(folder / "wheels")]
        if find_spec("hypothesis") is None:
            stand_in = folder / "stand_in" / "hypothesis"
            stand_in.mkdir(parents=True)
            (stand_in / "__init__.py").write_text(HYPOTHESIS)
            (stand_in / "strategies.py").write_text(HYPOTHESIS)
            paths.append(str(stand_in.parent))
        yield paths


def execute(part: Part, paths: Sequence[str], *, seconds: float) -> dict[str, Any]:
    """Runs a part, its lines passed on as they come; it is ended when its time is up.

    Args:
        part: what to run.
        paths: folders for PYTHONPATH.
        seconds: its time.

    Returns:
        Its command, exit code (None where it was ended), seconds, and last lines.
    """
    soon = f"{0.85 * seconds:.0f}"
    command = [word.replace("{seconds}", soon) for word in part.command]
    own = {name: value.replace("{seconds}", soon) for name, value in part.variables.items()}
    known = [*paths, *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(known), "PYTHONUNBUFFERED": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables | own, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line.rstrip("\n"))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    kept: list[str] = []
    code = None
    try:
        while True:
            left = seconds - (time.perf_counter() - start)
            line = lines.get(timeout=max(left, 0.001))
            if line is None:
                code = process.wait(timeout=max(left, 1))
                break
            print(f"[{part.name}] {line}", flush=True)
            kept.append(line)
    except (queue.Empty, subprocess.TimeoutExpired):
        print(f"[{part.name}] ended after {seconds:.0f} s", flush=True)
    finally:
        if code is None:  # the command and what it started, which is a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(timeout=10)
        if process.stdout is not None and not reader.is_alive():
            process.stdout.close()
    return {
        "command": " ".join(command),
        "exit_code": code,
        "seconds": round(time.perf_counter() - start, 1),
        "output": kept[-_KEPT_LINES:],
        "result": _read(part.out),
    }


def _read(path: Path | None) -> Any:
    """The JSON that a part has written, be it partial; None where it has not."""
    if path is None or not path.is_file():
        return None
    return json.loads(path.read_text())


def find_device(paths: Sequence[str]) -> dict[str, Any]:
    """Backend, device and versions, from another process, which frees the GPU when it ends."""
    code = (
        "import json, jax; from benchmarks.harness import environment; "
        "print(json.dumps({'backend': jax.default_backend(), **environment()}))"
    )
    # not through `execute`, which would cut the line
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    output = subprocess.run(
        [sys.executable, "-c", code],
        env=variables, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if output.returncode:
        raise SystemExit(f"JAX does not start here:\n{output.stderr}")
    answer: dict[str, Any] = json.loads(output.stdout.splitlines()[-1])
    return answer


def plan_stages(
    backend: str, folder: Path, *, tests: Sequence[str], commit: str | None
) -> list[Stage]:
    """What to run on a backend.

    Args:
        backend: JAX's name of it.
        folder: where parts may write.
        tests: test files.
        commit: commit to write into figures.

    Returns:
        Stages in order.
    """
    on_gpu = backend == "gpu"
    stages = [Stage(_test_parts(tests), 0.35)] if tests else []
    benchmark = (sys.executable, "-m", "benchmarks.dispatch")
    agree = (*benchmark, "--agree", "--problems", "tiny")
    part = Part("agreement", agree)
    if on_gpu and shutil.which("compute-sanitizer"):
        sanitizer = ("compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all")
        # every array its own allocation: the tool sees what is read beyond its end
        apart = {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform", **_SHARED_GPU}
        part = Part("sanitizer", (*sanitizer, *agree), apart)
    elif on_gpu:
        print("skipped: compute-sanitizer is not on the PATH", flush=True)
    stages.append(Stage((part,), 0.2))
    out = folder / "kernels.json"
    named = ("--commit", commit) if commit else ()
    kernels = (sys.executable, "-m", "benchmarks.kernels", "--seconds", "{seconds}", *named)
    stages.append(Stage((Part("kernels", (*kernels, "--out", str(out)), out=out),), 0.5))
    out = folder / "dispatch.json"
    timed = ["--check", "--seconds", "{seconds}", *(["--commit", commit] if commit else [])]
    command = [*benchmark, *timed, "--out", str(out)]
    command += [] if on_gpu else ["--problems", *_CPU_PROBLEMS]
    stages.append(Stage((Part("dispatch", tuple(command), out=out),), 0.5))
    layer, out = (sys.executable, "-m", "benchmarks.moe_layer"), folder / "moe_layer.json"
    command = [*layer, *timed, "--out", str(out), *([] if on_gpu else ["--problems", "small"])]
    stages.append(Stage((Part("moe_layer", tuple(command), out=out),), 0.6))
    out = folder / "dual.json"
    command = [sys.executable, "-m", "benchmarks.dual", *timed, "--out", str(out)]
    command += [] if on_gpu else ["--problems", "batch", "1e5 x 10"]
    stages.append(Stage((Part("dual", tuple(command), out=out),), 0.7 if on_gpu else 1.0))
    if on_gpu:
        # a report, not a bound: what the flags do for the rival
        out = folder / "ragged_flags.json"
        command = [*layer, "--seconds", "{seconds}", "--problems", *_RAGGED, "--out", str(out)]
        flags = " ".join(f"--{name}=true" for name in _RAGGED_FLAGS)
        variables = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
        stages.append(Stage((Part("ragged_flags", tuple(command), variables, out),), 1.0))
    return stages


def _test_parts(tests: Sequence[str]) -> tuple[Part, ...]:
    command, variables = [sys.executable, *_PYTEST, *tests], dict(_SHARED_GPU)
    shards = max(1, min(6, (os.cpu_count() or 1) // 2))
    return tuple(
        Part(
            f"tests {shard}/{shards}",
            tuple(command),
            variables | {"CALMOE_SHARD": f"{shard}/{shards}", "CALMOE_SECONDS": "{seconds}"},
        )
        for shard in range(1, shards + 1)
    )


def keep_measurements(measured: Mapping[str, Any] | None, folder: Path) -> Path | None:
    """Writes the measurements of a device's kernels where the library reads them.

    Args:
        measured: what `benchmarks.kernels` has written; `None` where it wrote nothing.
        folder: where the files are.

    Returns:
        The file; `None` where nothing was measured.
    """
    from benchmarks.harness import write_json
    from calmoe_kernels.measurements import slug

    if measured is None or not measured["entries"]:
        return None
    path = folder / f"{slug(measured['device_kind'])}.json"
    write_json(path, measured)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts.

    Returns:
        The exit code: 0 where everything that ran has passed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--wheel", type=Path, action="append", default=[], dest="wheels")
    parser.add_argument("--seconds", type=float, default=470, help="time for everything")
    parser.add_argument("--commit", help="commit of a tree without its repository")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    with import_path(options.wheels) as paths, tempfile.TemporaryDirectory() as name:
        sys.path[:0] = paths
        from benchmarks.harness import write_json  # imports the library, which may be in `paths`

        device = find_device(paths)
        print(f"{device['devices'][0]}, versions {device['versions']}", flush=True)
        if device["backend"] != "gpu":
            print("No GPU here: this proves the command, and what runs on this machine.")
        tests, skipped = choose_tests(ROOT / "tests", stood_in=("hypothesis",))
        for file, reason in skipped.items():
            print(f"skipped: {file}: {reason}", flush=True)
        stages = plan_stages(device["backend"], Path(name), tests=tests, commit=options.commit)
        content: dict[str, Any] = {
            "environment": device | ({"commit": options.commit} if options.commit else {}),
            "skipped": skipped,
            "complete": False,
            "parts": {},
        }
        for stage in stages:
            seconds = stage.share * (options.seconds - (time.perf_counter() - start))
            with ThreadPoolExecutor(len(stage.parts)) as pool:
                run = partial(execute, paths=paths, seconds=seconds)
                for part, result in zip(stage.parts, pool.map(run, stage.parts), strict=True):
                    content["parts"][part.name] = result
            write_json(options.out, content)
        kept = keep_measurements(content["parts"]["kernels"]["result"], options.results)
        print(f"measurements of kernels: {kept or 'none'}", flush=True)
        content |= {"complete": True, "seconds": round(time.perf_counter() - start, 1)}
        write_json(options.out, content)
    codes = {name: part["exit_code"] for name, part in content["parts"].items()}
    failed = [name for name, code in codes.items() if code != 0]
    for part_name, part in content["parts"].items():
        print(f"{part_name}: {part['output'][-1] if part['output'] else 'printed nothing'}")
    verdict = f"FAILED {', '.join(failed)}" if failed else "ok"
    print(f"{verdict}: {codes} in {content['seconds']} s, {options.out}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
