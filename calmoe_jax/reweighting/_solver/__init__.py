"""The dual of entropy balancing, solved."""
