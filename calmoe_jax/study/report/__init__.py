"""Renders records as a page: verdicts, tables, plots."""

from calmoe_jax.study.report.page import write_report as write_report
from calmoe_jax.study.report.recommended import recommendation as recommendation
from calmoe_jax.study.report.summary import Summary as Summary
from calmoe_jax.study.report.verdicts import Verdict as Verdict
from calmoe_jax.study.report.verdicts import verdicts as verdicts
from calmoe_jax.study.report.words import in_words as in_words
