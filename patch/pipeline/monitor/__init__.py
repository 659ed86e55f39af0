"""Job status reporting from outputs, logs, the submit folder and SLURM's queue."""
