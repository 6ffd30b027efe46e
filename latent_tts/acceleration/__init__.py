"""What makes a frozen model fast on a CPU; entered by `freeze()` of a backbone or a reward model alone."""
