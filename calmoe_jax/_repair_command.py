"""The command `calmoe repair`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from calmoe_jax._logs_arguments import (
    check_files,
    check_level,
    check_output,
    digests,
    renamed,
)


@dataclass(frozen=True)
class Repair:
    """Make a calibrator for the targets of logs, with its certificate, as a file to deploy.

    The logs are as for `calmoe audit`. Labels are those of a list of `calmoe label` that was filled
    in, or those that targets of the logs have.
    """

    file: tyro.conf.Positional[tuple[Path, ...]]
    """Files with the logs, or folders of parts; several are joined."""
    out: Path
    """File to write the repair to, as JSON."""
    labels: Path | None = None
    """The list of calmoe label, filled in. Without it, labels of targets in the logs count as drawn
    uniformly at random."""
    mode: Literal["safe", "bold", "certified", "combined", "refit"] | None = None
    """The rule. Without labels, safe (the default) or bold. With labels, combined (the default):
    what they and the label-free estimates say together; certified: only what labels show; refit:
    temperatures of aggregate or experts, fitted to half of many labels, confirmed by the rest."""
    level: float = 0.9
    """Level of each bound of the gap between confidence and accuracy."""
    columns: tuple[str, ...] = ()
    """The files' names for some of ours, as labels=y or prob_{}=p{}."""

    def __call__(self) -> int:
        """Runs the command."""
        from calmoe_jax._environment import describe_environment
        from calmoe_jax._files import to_json, write_whole
        from calmoe_jax.audit import read_logs, repair
        from calmoe_jax.audit.answers import read_answers
        from calmoe_jax.audit.limits_of_repair import describe_repair

        check_files(self.file)
        check_output("out", self.out)
        check_level("level", self.level)
        logs = read_logs(self.file, columns=renamed(self.columns))
        answers = None if self.labels is None else read_answers(self.labels, logs)
        found = repair(logs, labels=self.labels, answers=answers, mode=self.mode, level=self.level)
        env = describe_environment()
        found["versions"] = {"python": env["python"]} | {
            name: env["versions"][name] for name in ("calmoe_jax", "jax", "jaxlib", "numpy")
        }
        found["inputs"] = digests(logs)
        if self.labels is not None:
            found["inputs"] += digests(
                logs._replace(files=((str(self.labels), len(answers or ())),))
            )
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.out, to_json(found))
        print(describe_repair(found))
        print(f"Written to {self.out}.")
        return 0
