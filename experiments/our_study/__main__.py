"""Every objective, routing and calibrator, on every task: the study behind what we recommend.

`python -m experiments.our_study [--tasks TASK ...] [--data-dir DIR] [--runs DIR] [--out DIR]
[--seeds N] [--epochs N]`
"""

from experiments.our_study.command import main

if __name__ == "__main__":
    main()
