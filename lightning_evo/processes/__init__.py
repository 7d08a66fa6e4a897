"""Several processes: who evaluates what, how results travel, and whether all still agree."""
