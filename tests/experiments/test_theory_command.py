"""The command: what it writes, whole or not at all, and what was committed."""

import json
from pathlib import Path

import pytest

from experiments.theory import __main__ as command
from experiments.theory import soft_routing

FOLDER = Path(command.__file__).parent


def test_writes_numbers_and_a_picture_and_keeps_other_parts(tmp_path, capsys):
    command.main(["b", "--out", str(tmp_path / "new")])
    assert "b: " in capsys.readouterr().out
    first = (tmp_path / "new" / "results.json").read_bytes()
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"b.png", "results.json"}
    picture = (tmp_path / "new" / "b.png").read_bytes()
    command.main(["b", "--out", str(tmp_path / "new")])
    assert (tmp_path / "new" / "results.json").read_bytes() == first
    assert (tmp_path / "new" / "b.png").read_bytes() == picture
    content = json.loads(first)
    content["parts"]["a"] = {"made_with": {}, "numbers": {}}
    (tmp_path / "new" / "results.json").write_text(json.dumps(content))
    command.main(["b", "--out", str(tmp_path / "new")])
    found = json.loads((tmp_path / "new" / "results.json").read_text())
    assert list(found["parts"]) == ["a", "b"]
    assert found["parts"]["a"] == {"made_with": {}, "numbers": {}}
    assert found["parts"]["b"]["numbers"] == soft_routing.compute()


def test_nan_or_a_failed_part_writes_nothing(tmp_path, monkeypatch):
    part = command.PARTS["b"]

    def broken():
        return {"x": float("nan")}

    monkeypatch.setitem(command.PARTS, "b", command.Part(broken, lambda found: part.draw(GOOD)))
    with pytest.raises(ValueError, match="JSON"):
        command.main(["b", "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


GOOD = soft_routing.compute()


def test_wrong_usage_and_another_schema(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["g"])
    assert stopped.value.code == 2
    assert "LETTER must be one of a, b, c, d, e, f, got g" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="must be of schema 1, got 0"):
        command.main(["b", "--out", str(tmp_path)])


def test_all_parts_are_committed_by_one_clean_commit():
    found = command.read(FOLDER)
    assert list(found) == list(command.PARTS)
    commits = {part["made_with"]["commit"] for part in found.values()}
    assert len(commits) == 1
    assert len(commits.pop()) == 40  # no `+`: nothing was changed
    for letter in found:
        assert (FOLDER / f"{letter}.png").stat().st_size > 20_000


@pytest.mark.parametrize("letter", list(command.PARTS))
def test_pictures_are_drawn_from_the_committed_numbers(letter):
    figure = command.PARTS[letter].draw(command.read(FOLDER)[letter]["numbers"])
    for ax in figure.axes:
        assert ax.get_title()
        assert ax.get_xlabel() or letter == "c"
        assert ax.lines
