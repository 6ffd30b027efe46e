"""Attention of rows that share a prompt, packed or padded: all that touches transformers' cache and attention interface."""
