"""Tasks by name, file or function."""

import re
import sys

import numpy as np
import pytest
from small import small_task

from calmoe_jax import data
from calmoe_jax.data import DataError, TaskInfo, resolve_task

CODE = """
import numpy as np
from calmoe_jax.data import Split, Task

x, y = np.eye(4), np.array([0, 1, 0, 1])
number = 3

def make(last=1):
    return Task(
        "own", ("a", "b"), Split("train", "train", x, y), Split("held", "calibration", x, y),
        (Split("test", "id", x, y * last),),
    )

def labelled_wrongly():
    return make(2)

def number_of_tasks():
    return 2

def broken():
    raise ValueError("no such column: age")

def interrupted():
    raise KeyboardInterrupt

def lacking():
    from calmoe_jax.data import MissingDataError
    raise MissingDataError("there is no file x.csv.")

def later():
    import helper_of_own
    return helper_of_own.make()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a user's modules, which are unloaded afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(CODE)
    (tmp_path / "helper_of_own.py").write_text("from own import make")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "own.py").write_text(CODE)
    (tmp_path / "broken_module.py").write_text("1 / 0")
    (tmp_path / "script.py").write_text("import sys; sys.exit('usage: script FILE')")
    (tmp_path / "imports.py").write_text("import nowhere_to_be_found")
    (tmp_path / "bad_syntax.py").write_text("def f(:")
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")) or name == "pack":
            del sys.modules[name]


def test_a_task_is_checked():
    task = small_task()
    assert resolve_task(task).train.inputs is task.train.inputs
    task.train.labels[0] = 9
    with pytest.raises(data.CorruptDataError, match=r"labels must be in \[0, 2\]"):
        resolve_task(task)


def test_a_name(portal):
    np.testing.assert_array_equal(resolve_task("portal").train.inputs, portal.train.inputs)


def test_a_name_of_the_data_folder(tmp_path):
    with pytest.raises(data.MissingDataError, match=re.escape(str(tmp_path))):
        resolve_task("sentiment", tmp_path)


@pytest.mark.parametrize("name", ["own.npz", "OWN.NPZ"])
def test_a_file(folder, name):
    x, y = np.eye(20), np.arange(20) % 2
    with (folder / name).open("wb") as file:
        np.savez(file, train_inputs=x, train_labels=y, test_inputs=x, test_labels=y)
    for spec in (name, str(folder / name)):
        assert resolve_task(spec).name == name[:3]


@pytest.mark.parametrize("spec", ["own:make", "pack.own:make", "own:later"])
def test_a_function_of_a_module_in_the_current_folder(folder, spec):
    path = list(sys.path)
    task = resolve_task(spec)
    assert task.name == "own"
    assert task.train.inputs.dtype == np.float32
    assert sys.path == path


def test_a_function_of_a_module_on_the_path():
    assert resolve_task("small:small_task").source == "made up"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere:make", "task nowhere:make: there is no module nowhere on the import path or in "),
        ("pack.nothing:make", "there is no module pack.nothing on the import path"),
        ("own.nothing:make", "there is no module own.nothing on the import path"),
        ("own:nothing", "task own:nothing: nothing must be a function of own, but is not there."),
        ("own:number", "number must be a function of own, but is a int."),
        ("own:number_of_tasks", "number_of_tasks() must return a calmoe_jax.data.Task, got a int."),
        ("own:broken", "task own:broken: broken() raised ValueError: no such column: age"),
        ("own:lacking", "there is no file x.csv."),
        ("own:labelled_wrongly", "task own, split 'test': labels must be in [0, 1], got 0 to 2"),
        ("broken_module:make", "importing broken_module raised ZeroDivisionError"),
        ("bad_syntax:make", "importing bad_syntax raised SyntaxError"),
        ("imports:make", "importing imports raised ModuleNotFoundError: No module named 'nowhere"),
        ("script:make", "importing script raised SystemExit: usage: script FILE"),
        ("own:", "task must be module:function, two Python names, got task='own:'."),
        (":make", "task must be module:function"),
        ("own:make()", "task must be module:function"),
        ("own.py:make", "own.py"),
        ("./own.py:make", "task must be module:function"),
        ("a:b:c", "task must be module:function"),
    ],
)
def test_what_is_wrong_with_a_function_is_said(folder, spec, message):
    path = list(sys.path)
    with pytest.raises(DataError, match=re.escape(message)):
        resolve_task(spec)
    assert sys.path == path


def test_an_interruption_is_not_caught(folder):
    with pytest.raises(KeyboardInterrupt):
        resolve_task("own:interrupted")


def test_an_unknown_name_says_what_else_could_be_given():
    with pytest.raises(ValueError, match=r"ends with \.npz, or module:function, got .* portal\?"):
        resolve_task("portla")


def test_a_registered_task(monkeypatch):
    monkeypatch.setattr(data.registry, "TASKS", dict(data.TASKS))
    folders = []
    data.register("own", TaskInfo("a small one", lambda f: folders.append(f) or small_task()))
    assert resolve_task("own").source == data.load_task("own").source == "made up"
    assert folders == [None, None]
