"""Training a backbone: token sequences, differentiable passes and losses, one method a file."""
