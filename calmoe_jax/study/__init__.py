"""A study: train methods on a task, evaluate them on every split, report."""
