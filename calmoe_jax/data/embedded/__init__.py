"""Tasks whose data comes with the package or its dependencies."""
