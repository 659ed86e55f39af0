"""Multi-process execution: collectives, the launcher, and the scheduler's signals."""
