"""Rollouts and the Monte-Carlo values of their latent prefixes, computed, written and read: what reward models learn from."""
