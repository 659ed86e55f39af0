"""Models: loading, file checks, and layer shapes."""
