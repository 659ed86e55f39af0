"""Configuration of an experiment: its sections, its loading and its generated documents."""
