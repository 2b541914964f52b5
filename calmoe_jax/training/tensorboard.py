"""The log of a training for TensorBoard too, with tensorboardX."""

from pathlib import Path
from typing import Any

from calmoe_jax._errors import UserError
from calmoe_jax.training.log import MetricsLog


class TensorBoardLog(MetricsLog):
    """A log that also writes a scalar a seed for each number of a line, at its step.

    The JSON lines are the record; where a training resumes, TensorBoard shows steps twice.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        """Opens the log at a path, and a folder of events.

        Raises:
            UserError: if tensorboardX is not installed.
        """
        super().__init__(path)
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UserError(
                "tensorboard needs tensorboardX: pip install 'calmoe_jax[tensorboard]'."
            ) from error
        self._writer = SummaryWriter(str(folder))

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Appends lines, and their numbers as scalars."""
        super().write(lines)
        for line in lines:
            place = f"{line['method']}/seed-{line['seed']}"
            for name, value in line.items():
                if name not in ("method", "seed", "epoch", "step"):
                    self._add(f"{place}/{name}", value, line["step"])
        self._writer.flush()

    def _add(self, name: str, value: Any, step: int) -> None:
        for i, one in enumerate(value if isinstance(value, list) else [value]):
            tag = f"{name}/{i}" if isinstance(value, list) else name
            self._writer.add_scalar(tag, one, step)
