"""Data sets brought without a word, and what lies in a folder afterwards."""

from calmoe_jax.data.sets import prepare as bring


def prepare(name, folder, **named):
    return bring(name, folder, quiet=True, **named)


def left(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []
