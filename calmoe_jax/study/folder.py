"""The folder of a run: the same configuration continues it, another one is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calmoe_jax._errors import UserError
from calmoe_jax._files import to_json, write_whole

Say = Callable[[str], None]


class RunFolderError(UserError):
    """The output folder cannot be used; the message says why."""


def claim_folder(
    out: Path,
    config: dict[str, Any],
    environment: dict[str, Any],
    say: Say,
    *,
    defaults: dict[str, Any],
) -> None:
    """Makes the folder and writes `config.json`, or checks that it holds the same run.

    Args:
        out: the folder.
        config: everything that is needed to repeat the run, as plain JSON values.
        environment: versions and devices; a difference is reported, not refused.
        say: prints a line.
        defaults: the configuration's defaults. A run from before a setting existed is one with the
            setting's default.

    Raises:
        RunFolderError: if the folder holds another run or other files, or cannot be written.
    """
    path = out / "config.json"
    ours = json.loads(to_json(config))
    try:
        if path.is_file():
            held = json.loads(path.read_text())
            _refuse_other(out, held["config"], ours, json.loads(to_json(defaults)))
            if held["environment"] != environment:
                say("The environment differs from the one this run started in: see config.json.")
            return
        if out.exists() and any(out.iterdir()):
            raise RunFolderError(f"{out} is not empty and holds no run: give another --out.")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_json({"config": ours, "environment": environment}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{out} cannot be used: {error}.") from error


def _refuse_other(
    out: Path, held: dict[str, Any], ours: dict[str, Any], defaults: dict[str, Any]
) -> None:
    flat_held, flat_ours = _flatten(held), _flatten(ours)
    flat_held = {n: v for n, v in _flatten(defaults).items() if n in flat_ours} | flat_held
    for name in sorted(flat_held.keys() | flat_ours.keys()):
        if flat_held.get(name) != flat_ours.get(name):
            raise RunFolderError(
                f"{out} holds a run of another configuration: {name} is {flat_held.get(name)!r} "
                f"there and {flat_ours.get(name)!r} here. Give another --out."
            )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
