"""Tasks whose files lie in a folder of the user's."""
