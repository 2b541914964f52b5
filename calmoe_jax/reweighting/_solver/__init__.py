"""A solver for the dual of entropy balancing."""
