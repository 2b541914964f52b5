"""Theory that runs: a number and a picture for each of its claims, and for where they do not hold.

`python -m experiments.theory [a b c d e f] [--out DIR]`

(a) hard routing and shifts that keep P(Y | S); (b) soft routing, three exact populations; (c) the
disagreement identity; (d) the worst shift in a chi-square ball; (e) the tilt is improper; (f)
mixtures of a real task. Each has a module, whose docstring says what it shows. About two minutes of
computing, most of it for (c) and (f). `results.json` holds all numbers, and what they were made
with; exact ones are fractions, as text. A rerun on the same machine gives the same file.
"""
