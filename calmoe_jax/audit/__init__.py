"""A deployed model's logs: reads, assesses and describes them; `pictures` plots them.

Imports neither Flax nor Optax nor Orbax: an audit needs no model.
"""

from calmoe_jax.audit.judge import audit as audit
from calmoe_jax.audit.logs import LogError as LogError
from calmoe_jax.audit.logs import Logs as Logs
from calmoe_jax.audit.logs import as_logs as as_logs
from calmoe_jax.audit.logs import read_logs as read_logs
from calmoe_jax.audit.results import Audit as Audit
from calmoe_jax.audit.words import describe_audit as describe_audit
from calmoe_jax.audit.writer import LogWriter as LogWriter
from calmoe_jax.audit.writer import log_batch as log_batch
