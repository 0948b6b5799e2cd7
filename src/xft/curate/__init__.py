"""Clean, deduplicate, decontaminate and mix data, with a reason for every record that is left out."""
