"""A small pre-trained code model, and instruction data whose held-out problems are scored by running code."""
