"""The job `experiment`: a grid of methods and seeds, each cell an ordinary run; one table, one page."""
