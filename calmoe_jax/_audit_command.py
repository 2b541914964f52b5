"""The command `calmoe audit`."""

import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from calmoe_jax._logs_arguments import check_files, check_level, check_output, renamed
from calmoe_jax._usage import UsageError, check_folder

_WORDS = {True: "fails", False: "passes", None: "cannot be judged"}


@dataclass(frozen=True)
class Audit:
    """Judge a deployed model's logs: calibration, shift, and repair without labels.

    Logs hold, for each example, the router's weights, the experts' probabilities and the label
    where it is known. An npz file has arrays routing_weights [n, experts], expert_probs [n,
    experts, classes] and labels [n] (-1: unknown); a parquet file has these columns; a CSV or
    parquet file may have a column for each number, weight_0, expert_0_prob_1, label. Logits:
    routing_logits, expert_logits (expert_0_logit_1). If need be targets, clusters, where (false:
    does not count), time. Where only the chosen experts were logged, the second axis holds slots,
    and expert_indices [n, slots] (index_0) says whose. Where only the aggregate was: probs or
    logits [n, classes] (prob_1, logit_1). Soft labels: label_probs (label_prob_1). A folder holds
    parts as calmoe_jax.audit.LogWriter writes them.
    """

    file: tyro.conf.Positional[tuple[Path, ...]]
    """Files with the logs, or folders of parts; several are joined."""
    out: Path | None = None
    """File to write all results to, as JSON."""
    report: Path | None = None
    """File to write one self-contained HTML page to."""
    plots: Path | None = None
    """Folder for plots: reliability, experts, gaps; confidences and reliability of targets."""
    columns: tuple[str, ...] = ()
    """The files' names for some of ours, as labels=y or prob_{}=p{}, separated by spaces or
    commas."""
    fail_on: tuple[Literal["shift", "uncalibrated", "harm"], ...] = ()
    """End with exit code 3 if the routing configuration shifts, if the lower end of the held-out
    calibration error is above the tolerance, or if labels of targets show that the repair makes
    predictions worse. With 2, if none fails and one cannot be judged by these logs."""
    level: float = 0.05
    """Level of the test for a shift."""
    tolerance: float = 0.02
    """Calibration error that does not matter: of 100 decisions at a stated confidence, 2 more or
    fewer are right than it says."""
    repair: str = "safe"
    """The rule for the targets' temperature that would be deployed; harm is judged by it."""

    def __call__(self) -> int:
        """Runs the command."""
        from calmoe_jax.audit import audit, describe_audit, read_logs
        from calmoe_jax.audit.findings import Limits, gates

        self._check()
        logs = read_logs(self.file, columns=renamed(self.columns))
        found = audit(logs)
        limits = Limits(self.level, self.tolerance, self.repair)
        judged = gates(found, self.fail_on, limits)
        self._write(logs, found, limits, judged)
        print(describe_audit(found))
        for gate in judged:
            words = f"gate {gate.name} {_WORDS[gate.fails]}: {gate.reason}."
            print(f"G{words[1:]}")
            if gate.fails is not False:
                print(f"calmoe: {words}", file=sys.stderr)
        if any(gate.fails for gate in judged):
            return 3
        return 2 if any(gate.fails is None for gate in judged) else 0

    def _check(self) -> None:
        """Checks the arguments before anything is read."""
        check_files(self.file)
        check_level("level", self.level)
        if not 0 <= self.tolerance < 1:
            raise UsageError(f"tolerance must be in [0, 1), got tolerance={self.tolerance}.")
        for name in ("out", "report"):
            if (path := vars(self)[name]) is not None:
                check_output(name, path)
        if self.plots is not None:
            check_folder("plots", self.plots)
        from calmoe_jax.shift.repair import CALIBRATORS

        if self.repair not in (known := ("temperature", *CALIBRATORS)):
            raise UsageError(f"repair must be one of {', '.join(known)}, got repair={self.repair}.")

    def _write(self, logs: Any, found: Any, limits: Any, judged: list[Any]) -> None:
        from calmoe_jax._files import to_json, write_whole

        if self.out is not None:
            plain = found.to_json()
            if self.fail_on:
                plain["gates"] = [gate._asdict() for gate in judged]
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.out, to_json(plain))
        if self.plots is None and self.report is None:
            return
        from calmoe_jax.audit.page import audit_page
        from calmoe_jax.audit.pictures import draw_audit, draw_targets

        pictures = draw_audit(logs) | draw_targets(logs, found, [limits.repair])
        if self.plots is not None:
            self.plots.mkdir(parents=True, exist_ok=True)
            for name, content in pictures.items():
                write_whole(self.plots / f"{name}.png", content)
        if self.report is not None:
            self.report.parent.mkdir(parents=True, exist_ok=True)
            page = audit_page(
                found, pictures, files=[path.name for path in self.file],
                command=self._command(), limits=limits, judged=judged,
            )  # fmt: skip
            write_whole(self.report, page)

    def _command(self) -> str:
        """The command line of this audit."""
        words = ["calmoe", "audit", *map(str, self.file)]
        for given in fields(self):
            value = getattr(self, given.name)
            if given.name != "file" and value != given.default:
                values = value if isinstance(value, tuple) else (value,)
                words += ["--" + given.name.replace("_", "-"), *map(str, values)]
        return shlex.join(words)
