"""Instruction tuning of dense models and mixtures, driven by transformers' Trainer."""
