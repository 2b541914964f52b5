"""Runs the study: see `experiments.our_study`."""

from experiments.our_study.command import main

if __name__ == "__main__":
    main()
