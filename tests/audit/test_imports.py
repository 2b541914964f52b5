"""An audit runs where no training library is installed."""

import subprocess
import sys

import numpy as np

PROGRAM = """
import sys
from pathlib import Path
import calmoe_jax.audit as audit
from calmoe_jax.audit.pictures import draw_audit

for name in ("flax", "optax", "orbax"):
    assert name not in sys.modules, name
logs = audit.read_logs(Path(sys.argv[1]))
found = audit.audit(logs)
found.to_json()
assert "Verdict" in audit.describe_audit(found)
assert draw_audit(logs)
print(*{"flax", "optax", "orbax"} & set(sys.modules))
"""


def test_an_audit_imports_neither_flax_nor_optax_nor_orbax(tmp_path):
    rng = np.random.RandomState(0)
    known = np.arange(80) < 50
    np.savez(
        tmp_path / "logs.npz",
        routing_weights=rng.dirichlet(np.ones(2), 80).astype(np.float32),
        expert_probs=rng.dirichlet(np.ones(3), (80, 2)).astype(np.float32),
        labels=np.where(known, rng.randint(3, size=80), -1),
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "logs.npz")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
