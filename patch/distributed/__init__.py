"""Multi-process execution: collectives, the launcher, its agents and the scheduler's signals."""
