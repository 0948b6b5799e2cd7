"""Synthesis: from seed documents to instruction pairs that a teacher wrote and a sandbox checked. Imports no torch."""
