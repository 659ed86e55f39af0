"""Several processes: collectives, the launcher, its agents, and signals of a scheduler."""
