"""What helix costs, beside a loop written by hand: `python -m benchmarks` (see docs/benchmarks.md)."""
