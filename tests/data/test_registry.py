"""Tasks by name."""

import pytest
from small import small_task

from calmoe_jax import data
from calmoe_jax.data import TaskInfo


def test_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match=r"got task='portla'\. Did you mean portal"):
        data.load_task("portla")


def test_missing_data_says_which_file_and_how_to_get_it(tmp_path):
    with pytest.raises(data.MissingDataError, match=r"--data-dir.*idx files of MNIST"):
        data.load_task("digits16")
    with pytest.raises(data.MissingDataError, match=r"train-images-idx3-ubyte.gz.*idx files"):
        data.load_task("fashion_c", tmp_path)
    assert data.TASKS["digits16"].missing(tmp_path) == data.TASKS["digits16"].files


def test_a_new_name_is_known_and_needs_no_files(monkeypatch, tmp_path):
    monkeypatch.setattr(data.registry, "TASKS", dict(data.TASKS))
    info = TaskInfo("a small one", lambda folder: small_task())
    data.register("own", info)
    assert data.load_task("own", tmp_path).classes == ("a", "b", "c")
    assert info.missing(None) == info.missing(tmp_path) == ()
    with pytest.raises(ValueError, match="name must be new, got name='own': a small one"):
        data.register("own", info)
    with pytest.raises(ValueError, match="Did you mean own"):
        data.load_task("owl")


@pytest.mark.parametrize("name", ["", "mine.npz", "MINE.NPZ", "module:function"])
def test_names_that_look_like_files_or_functions(name):
    with pytest.raises(ValueError, match=r"without a colon and not end in \.npz"):
        data.register(name, TaskInfo("a small one", lambda folder: small_task()))
    assert name not in data.TASKS


def test_a_registered_task_is_checked(monkeypatch):
    def load(folder):
        task = small_task()
        task.train.labels[3] = 8
        return task

    monkeypatch.setattr(data.registry, "TASKS", dict(data.TASKS))
    data.register("own", TaskInfo("labelled wrongly", load))
    with pytest.raises(data.CorruptDataError, match=r"labels must be in \[0, 2\], got 0 to 8"):
        data.load_task("own")
