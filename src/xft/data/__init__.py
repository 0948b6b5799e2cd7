"""Instruction pairs: the record, the sources they are read from, and the set that xft ships."""
