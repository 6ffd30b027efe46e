"""What makes a frozen model fast on a CPU; entered by `LatentBackbone.freeze()` alone."""
