"""Records to a page: verdicts in words, tables, pictures."""

from calmoe_jax.study.report.page import write_report as write_report
from calmoe_jax.study.report.summary import Results as Results
from calmoe_jax.study.report.summary import ResultsError as ResultsError
from calmoe_jax.study.report.summary import read_results as read_results
from calmoe_jax.study.report.verdicts import Verdict as Verdict
from calmoe_jax.study.report.verdicts import verdicts as verdicts
