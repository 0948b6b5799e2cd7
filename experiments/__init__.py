"""Experiments with xft: each has a README.md."""
