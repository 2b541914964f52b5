"""Lets `jax.export` write and read functions whose arguments and results are our `NamedTuple`s."""

import sys

import jax.export

_registered: set[type] = set()


def register_named_tuples(*namespaces: str) -> None:
    """Registers the public `NamedTuple`s of namespaces, as `NAMESPACE.CLASS`.

    Args:
        *namespaces: names of modules or packages that have been imported.
    """
    for namespace in namespaces:
        modules = [m for n, m in sys.modules.items() if f"{n}.".startswith(f"{namespace}.")]
        for module in modules:
            for name, member in sorted(vars(module).items()):
                own = getattr(member, "__module__", None) == module.__name__
                if own and hasattr(member, "_fields") and not name.startswith("_"):
                    _register(member, f"{namespace}.{name}")


def _register(named_tuple: type, name: str) -> None:
    if named_tuple in _registered:
        return
    _registered.add(named_tuple)
    try:
        jax.export.register_namedtuple_serialization(named_tuple, serialized_name=name)
    except ValueError:
        # imported a second time: what is read from a file gets the first class of that name
        return
