"""What scripts/bench measures, and how. A module for each thing that is measured ends in `rows`, the lines of its table."""
