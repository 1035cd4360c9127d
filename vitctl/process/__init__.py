"""Child processes, signals and failure records."""
