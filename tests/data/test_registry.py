"""Tasks by name."""

import pytest
from small import small_task

from calmoe_jax import data
from calmoe_jax.data import TaskInfo, sets


def test_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match=r"got task='portla'\. Did you mean portal"):
        data.load_task("portla")


def test_missing_data_says_which_file_and_how_to_get_it(tmp_path, monkeypatch):
    """One command for each task, with sizes and licences of all that is missing."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for name, info in data.TASKS.items():
        if not info.data:
            assert info.missing(None) == ()
            continue
        assert info.missing(tmp_path) == info.missing(None)
        assert info.absent(tmp_path) == info.data
        for folder in (None, tmp_path):
            with pytest.raises(data.MissingDataError) as error:
                data.load_task(name, folder)
            said = str(error.value)
            assert f"needs data that is not in {folder or tmp_path / 'calmoe_jax'}: " in said
            assert said.count(f"`calmoe data prepare {name}`") == 1
            for each in info.data:
                found = sets.SETS[each]
                assert f"({found.size}, {found.licence})" in said
                assert all(file in said for file in found.files)
                assert (found.source in said) == bool(found.manual)
    assert data.TASKS["digits16"].missing(tmp_path) == data.TASKS["digits16"].files


def test_a_loader_alone_names_the_command_too(tmp_path):
    for name in ("fashion_c", "sentiment", "newsgroups", "civil_comments", "domainnet"):
        with pytest.raises(data.MissingDataError, match="`calmoe data prepare ") as error:
            data.TASKS[name].load(tmp_path)
        assert str(tmp_path) in str(error.value)
        with pytest.raises(data.MissingDataError, match="`calmoe data prepare "):
            data.TASKS[name].load(None)


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
