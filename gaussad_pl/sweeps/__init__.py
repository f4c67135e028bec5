"""What jobs of a sweep do beyond a single run."""
