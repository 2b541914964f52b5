"""Tasks: data with real shifts, split, checked and named."""

from calmoe_jax.data.corruptions import CORRUPTIONS as CORRUPTIONS
from calmoe_jax.data.corruptions import SEVERITIES as SEVERITIES
from calmoe_jax.data.corruptions import corrupt as corrupt
from calmoe_jax.data.registry import TASKS as TASKS
from calmoe_jax.data.registry import TaskInfo as TaskInfo
from calmoe_jax.data.registry import load_task as load_task
from calmoe_jax.data.task import CorruptDataError as CorruptDataError
from calmoe_jax.data.task import DataError as DataError
from calmoe_jax.data.task import MissingDataError as MissingDataError
from calmoe_jax.data.task import Split as Split
from calmoe_jax.data.task import Task as Task
from calmoe_jax.data.task import check_task as check_task
