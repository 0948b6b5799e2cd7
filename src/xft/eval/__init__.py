"""Scoring: prompts to samples, samples to verdicts in a sandbox, verdicts to scores with intervals."""
