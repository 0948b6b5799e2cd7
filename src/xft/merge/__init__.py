"""Merging: a mixture's experts become one FFN again, with fixed or learned coefficients."""
