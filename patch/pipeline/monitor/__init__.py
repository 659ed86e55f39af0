"""What became of each job of an experiment, read from outputs, logs, the submit folder and SLURM's queue."""
