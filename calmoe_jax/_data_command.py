"""The command `calmoe data`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from calmoe_jax._usage import UsageError, check_folder


@dataclass(frozen=True)
class Data:
    """List the data sets of tasks, bring them, or say where they are looked for.

    `calmoe data list`; `calmoe data prepare NAME...`, where a name is that of a data set or of a
    task, which stands for all of its data sets; `calmoe data where`.
    """

    action: tyro.conf.Positional[Literal["list", "prepare", "where"]]
    """What to do."""
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Data sets or tasks to bring."""
    data_dir: Path | None = None
    """The data folder; CALMOE_DATA_DIR by default, or the user's folder for data."""
    manual_dir: Path | None = None
    """Folder with what must be downloaded by hand; manual in the data folder by default."""

    def __call__(self) -> int:
        """Runs the command."""
        if self.action == "prepare":
            return self._prepare()
        if self.names:
            raise UsageError(f"names must be given to prepare only, got {self.names[0]}.")
        return self._list() if self.action == "list" else self._where()

    def _list(self) -> int:
        from calmoe_jax.data import TASKS
        from calmoe_jax.data.sets import SETS, data_folder

        folder = data_folder(self.data_dir).path
        print(f"In {folder}:")
        for name, info in TASKS.items():
            needs = ", ".join(info.data) or "comes with the package"
            here = "not here: " if info.absent(folder) else ""
            print(f"  task {name}: {here}{needs}")
        for name, found in SETS.items():
            here = "here" if found.is_here(folder) else "not here"
            print(f"\n{name}: {found.summary}\n  {found.size}; {found.licence}")
            by_hand = f", downloaded by hand ({found.manual[0]})" if found.manual else ""
            print(f"  from {found.source}{by_hand}\n  {here}")
        return 0

    def _where(self) -> int:
        from calmoe_jax.data.sets import data_folder

        folder = data_folder(self.data_dir)
        there = "" if folder.path.is_dir() else "; there is no such folder yet"
        print(f"{folder.path}: {folder.reason}{there}")
        print(f"{self.manual_dir or folder.path / 'manual'}: what is downloaded by hand")
        return 0

    def _prepare(self) -> int:
        from calmoe_jax.data.sets import SETS, data_folder, prepare

        wanted = _data_sets(self.names)
        folder = data_folder(self.data_dir).path
        if not all(SETS[name].is_here(folder) for name in wanted):
            check_folder("data_dir", folder)
        if self.manual_dir is not None and not self.manual_dir.is_dir():
            raise UsageError(f"manual_dir must be a folder, got manual_dir={self.manual_dir}.")
        for number, name in enumerate(wanted):
            found = SETS[name]
            if found.is_here(folder):
                print(f"{name}: already in {folder}", flush=True)
                continue
            print(f"{name}: {found.size}, {found.licence}; from {found.source}", flush=True)
            prepare(name, folder, manual_dir=self.manual_dir, then=wanted[number + 1 :])
            print(f"{name}: now in {folder}", flush=True)
        return 0


def _data_sets(names: tuple[str, ...]) -> tuple[str, ...]:
    """The data sets of names, each once."""
    import difflib

    from calmoe_jax.data import TASKS
    from calmoe_jax.data.sets import SETS

    if not names:
        raise UsageError("names must name at least one data set or task to bring, got none.")
    found: list[str] = []
    for name in names:
        if name not in SETS and name not in TASKS:
            near = difflib.get_close_matches(name, [*SETS, *TASKS], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UsageError(
                f"names must be of data sets or tasks (calmoe data list), got {name!r}.{hint}"
            )
        found += [name] if name in SETS else TASKS[name].data
        if name not in SETS and not TASKS[name].data:
            print(f"{name}: comes with the package", flush=True)
    return tuple(dict.fromkeys(found))
