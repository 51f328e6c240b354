"""What came of runs: their logs, where they stand, figures and reports."""
