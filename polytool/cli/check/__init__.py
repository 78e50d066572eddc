"""Check models for faults, and saved comparisons against other tolerances."""
