"""Tasks whose files are in the user's data folder."""
