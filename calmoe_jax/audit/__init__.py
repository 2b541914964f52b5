"""A deployed model's logs: read them, judge them, show them."""
