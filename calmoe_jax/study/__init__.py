"""A study: train methods on a task, evaluate them on every split, compare and report.

`run(task, methods, network=...)` takes objects or names; `Method` gives an objective a name.
Names are imported on first use, so that reading a configuration or results imports neither Flax
nor an optimiser.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calmoe_jax.study.checks import RunInputError as RunInputError
    from calmoe_jax.study.config import ModelConfig as ModelConfig
    from calmoe_jax.study.config import RunConfig as RunConfig
    from calmoe_jax.study.config import TrainConfig as TrainConfig
    from calmoe_jax.study.folder import RunFolderError as RunFolderError
    from calmoe_jax.study.methods import METHODS as METHODS
    from calmoe_jax.study.methods import Method as Method
    from calmoe_jax.study.records import Results as Results
    from calmoe_jax.study.records import ResultsError as ResultsError
    from calmoe_jax.study.records import read_results as read_results
    from calmoe_jax.study.report import write_report as write_report
    from calmoe_jax.study.runner import run as run

_HOME = {
    "METHODS": "methods",
    "Method": "methods",
    "ModelConfig": "config",
    "Results": "records",
    "ResultsError": "records",
    "RunConfig": "config",
    "RunFolderError": "folder",
    "RunInputError": "checks",
    "TrainConfig": "config",
    "read_results": "records",
    "run": "runner",
    "write_report": "report",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
