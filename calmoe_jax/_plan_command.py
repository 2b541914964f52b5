"""The command `calmoe plan`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from calmoe_jax._usage import UsageError, check_folder
from calmoe_jax.study.plan_config import PlanConfig


class _GivenPlan(PlanConfig):
    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class Plan:
    """Compile a training step for a pod that is not here: memory, operations, exchanges.

    Needs the compiler of the hardware: the extra tpu for v4, v5e, v5p and v6e, jax[cuda12] for
    h100; cpu:N needs nothing.
    """

    config: Annotated[_GivenPlan, tyro.conf.arg(name="")] = field(default_factory=_GivenPlan)
    """What to plan."""
    topology: tuple[str, ...] = ("v5e:16x16",)
    """Devices: a slice such as v5e:16x16, two of them as 2*v5e:16x16, hosts by GPUs as h100:4x8."""
    out: Path | None = None
    """File to write the plans to, as JSON."""
    picture: Path | None = None
    """File for a picture of memory and exchanges."""
    largest: bool = True
    """Compile for half the batch too, to estimate the largest batch that fits."""
    diff: tuple[Path, ...] = ()
    """Two files of plans to compare, instead of planning."""

    def __call__(self) -> int:
        """Runs the command."""
        from calmoe_jax._files import write_whole
        from calmoe_jax.study import planning

        if self.diff:
            return self._compare()
        try:
            config = PlanConfig(**vars(self.config))
        except ValueError as error:
            raise UsageError(str(error)) from error
        for name in ("out", "picture"):
            if (path := vars(self)[name]) is not None:
                check_folder(name, path.parent)
        planned = []
        for name in self.topology:
            planned.append(planning.plan_training(config, name, largest=self.largest))
            print(planning.describe(planned[-1]), flush=True)
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.out, planning.to_file(planned))
        if self.picture is not None:
            from calmoe_jax.study.plan_picture import draw_plans

            self.picture.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.picture, draw_plans([one.plan for one in planned]))
        return 0

    def _compare(self) -> int:
        from calmoe_jax.study.planning import difference, from_file

        if len(self.diff) != 2:
            raise UsageError(f"diff must be two files of plans, got {len(self.diff)}.")
        for old, new in zip(*map(from_file, self.diff), strict=False):
            print(difference(old, new))
        return 0
