"""The command `calmoe label`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from calmoe_jax._logs_arguments import check_files, check_output, renamed
from calmoe_jax._usage import UsageError


@dataclass(frozen=True)
class Label:
    """Draw which targets of logs to label: a list to fill in, for `calmoe repair`.

    The logs are as for `calmoe audit`. Targets whose prediction is less certain to be right are
    drawn more often; the list says with which probability, so that the labels show no bias.
    """

    file: tyro.conf.Positional[tuple[Path, ...]]
    """Files with the logs, or folders of parts; several are joined."""
    out: Path
    """File to write the list to, as CSV, with an empty column label."""
    budget: int = 50
    """Number of targets to draw, or of clusters, set before labels are seen; one may stop
    earlier."""
    seed: int = 0
    """Seed of the draw."""
    whole_clusters: bool = False
    """Draw clusters, all targets of one together."""
    columns: tuple[str, ...] = ()
    """The files' names for some of ours, as labels=y or prob_{}=p{}."""

    def __call__(self) -> int:
        """Runs the command."""
        from calmoe_jax._files import write_whole
        from calmoe_jax.audit import ask_for_labels, read_logs
        from calmoe_jax.audit.asking import words_of_request

        check_files(self.file)
        check_output("out", self.out)
        if self.budget < 1:
            raise UsageError(f"budget must be at least 1, got budget={self.budget}.")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed must be in [0, 2**32), got seed={self.seed}.")
        logs = read_logs(self.file, columns=renamed(self.columns))
        asked = ask_for_labels(
            logs, budget=self.budget, seed=self.seed, whole_clusters=self.whole_clusters
        )
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.out, asked.table)
        print("\n".join([f"{self.out}:", *words_of_request(asked, self.budget)]))
        return 0
