"""Parallel latent rollouts: the four steps, the rows on their way through them, and what comes out."""
