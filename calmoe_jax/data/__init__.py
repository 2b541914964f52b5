"""Tasks: data with real shifts, split, checked and named.

There are three ways to bring your own task; `resolve_task` and `calmoe run` accept each of them:

1. In Python: a `Task` of `Split`s, whose inputs are an array or a tree of arrays.
   `check_task(task)` reports errors.

   >>> inputs, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
   >>> task = Task(
   ...     name="mine",
   ...     classes=("no", "yes"),
   ...     train=Split("train", "train", inputs, labels),
   ...     calibration=Split("calibration", "calibration", inputs, labels),
   ...     evaluation=(
   ...         Split("test", "id", inputs, labels),
   ...         Split("later", "shift", inputs[::-1].copy(), labels),
   ...     ),
   ... )
   >>> check_task(task).input_spec
   ShapeDtypeStruct(shape=(4,), dtype=float32)

2. As a file: `load_npz("mine.npz")`, whose arrays have the names `train_inputs`, `train_labels`,
   `test_inputs`, `test_labels`, `shift_later_inputs`, `shift_later_labels` and so on; see there.

3. As a function of a module: `resolve_task("mine:make")` calls `make()` of `mine.py`, found on the
   import path or in the current folder, which returns a `Task`.

`register` gives a task a name for `load_task`. `calmoe_jax.data.sets` lists the data sets that
named tasks are made of and brings them (`calmoe data prepare`). `calmoe_jax.data.tfds` makes splits
of the data sets of tensorflow-datasets. `calmoe_jax.data.records` writes and reads examples that do
not fit in memory, and `calmoe_jax.data.stream` makes batches of them.
"""

from calmoe_jax.data.checks import check_task as check_task
from calmoe_jax.data.corruptions import CORRUPTIONS as CORRUPTIONS
from calmoe_jax.data.corruptions import SEVERITIES as SEVERITIES
from calmoe_jax.data.corruptions import corrupt as corrupt
from calmoe_jax.data.errors import CorruptDataError as CorruptDataError
from calmoe_jax.data.errors import DataError as DataError
from calmoe_jax.data.errors import MissingDataError as MissingDataError
from calmoe_jax.data.npz import load_npz as load_npz
from calmoe_jax.data.registry import TASKS as TASKS
from calmoe_jax.data.registry import TaskInfo as TaskInfo
from calmoe_jax.data.registry import load_task as load_task
from calmoe_jax.data.registry import register as register
from calmoe_jax.data.resolve import resolve_task as resolve_task
from calmoe_jax.data.task import Split as Split
from calmoe_jax.data.task import Task as Task
from calmoe_jax.data.tokens import TextTokenizer as TextTokenizer
from calmoe_jax.data.tokens import load_tokenizer as load_tokenizer
