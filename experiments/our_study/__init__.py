"""Every objective, routing and calibrator, on every task: the study behind what we recommend.

`python -m experiments.our_study [--tasks TASK ...] [--data-dir DIR] [--runs DIR] [--out DIR]
[--seeds N] [--epochs N] [--methods NAME ...]`

Dense, top-2 and hard routing, all methods of `calmoe run` and a deep ensemble, all calibrators of
the library. Tasks of colour images are their features by a small frozen ResNet (see
`experiments.features`). What is there is not computed again; a file a task is written to `--out`.
"""
