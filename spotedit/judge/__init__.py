"""Find out which tokens an edit changes: judges, selection, the user's mask, misaligned frames."""
