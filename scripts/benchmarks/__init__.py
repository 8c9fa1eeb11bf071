"""What scripts/bench measures, and how. Each thing that is measured has a module whose `rows` are lines of the table."""
