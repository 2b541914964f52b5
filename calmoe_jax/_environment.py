"""The environment of a result: versions, devices, commit."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_PACKAGES = (
    "calmoe_jax", "jax", "jaxlib", "jax-triton", "triton", "flax", "optax", "orbax-checkpoint",
    "numpy", "scipy",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Describes what a result depends on besides its configuration: versions, devices, commit."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "platform": f"{sys.platform} {platform.machine()}",
        "devices": [f"{len(devices)} x {devices[0].device_kind}"],
        "cores": os.cpu_count(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout the package runs from, with `+` if it has changes; None outside."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        inside = _git(folder, "ls-files", "__init__.py")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "..")
    except (OSError, subprocess.SubprocessError):
        return None
    if not inside:
        return None
    return commit + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
