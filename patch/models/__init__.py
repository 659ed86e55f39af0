"""Models: loading, files, shapes."""
