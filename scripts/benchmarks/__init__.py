"""What scripts/bench measures, and how. Each thing that is measured has a module with `rows` of the table."""
