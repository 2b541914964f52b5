"""Figures of the READMEs, written from the committed results.

`python -m experiments.figures` writes the numbers and commits of the table in
`experiments/README.md`, and the passages of the main README that show results of experiments.

A row of the table is known by a comment at the end of its claim, `<!-- theory-a -->`, a passage by
one on the line before it, and ends before the line `<!-- end -->`. For a further row write one
function that makes its number from its results file, add it to `rows.ROWS` under a key and the
commit that the file names to `rows.COMMITS`, and put the key into the table. Words that other
results need not bear out stand in `words.supported`, so that those are an error and not a false
sentence.
"""
