"""A deployed model's logs: reads, assesses and describes them; `pictures` plots them.

Imports neither Flax nor Optax nor Orbax: an audit needs no model.
"""

from calmoe_jax.audit.answers import read_answers as read_answers
from calmoe_jax.audit.asking import ask_for_labels as ask_for_labels
from calmoe_jax.audit.deployed import DeployedRepair as DeployedRepair
from calmoe_jax.audit.deployed import RepairError as RepairError
from calmoe_jax.audit.deployed import apply_repair as apply_repair
from calmoe_jax.audit.deployed import load_repair as load_repair
from calmoe_jax.audit.judge import audit as audit
from calmoe_jax.audit.logs import LogError as LogError
from calmoe_jax.audit.logs import Logs as Logs
from calmoe_jax.audit.logs import as_logs as as_logs
from calmoe_jax.audit.logs import read_logs as read_logs
from calmoe_jax.audit.monitoring import describe_monitor as describe_monitor
from calmoe_jax.audit.monitoring import monitor as monitor
from calmoe_jax.audit.repairing import repair as repair
from calmoe_jax.audit.results import Audit as Audit
from calmoe_jax.audit.words import describe_audit as describe_audit
from calmoe_jax.audit.writer import LogWriter as LogWriter
from calmoe_jax.audit.writer import log_batch as log_batch
