"""A run in words: a verdict for each method, and the recommended recipe."""

from calmoe_jax.study.report.recommended import recommendation
from calmoe_jax.study.report.summary import Summary
from calmoe_jax.study.report.verdicts import verdicts


def in_words(summary: Summary) -> str:
    """What `calmoe run` prints of a finished run.

    Args:
        summary: summary of a run.

    Returns:
        Paragraphs, an empty line between them.
    """
    said = [
        f"{summary.title(verdict.method)}: {verdict.headline}.\n  {verdict.detail}"
        for verdict in verdicts(summary)
    ]
    if line := recommendation(summary):
        said.append(line)
    return "\n\n".join(said)
