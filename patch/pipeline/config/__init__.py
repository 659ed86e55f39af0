"""The configuration of an experiment: its sections, loading, generated documents."""
