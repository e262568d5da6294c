"""Models out to other formats."""
