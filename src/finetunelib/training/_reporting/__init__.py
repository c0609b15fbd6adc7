"""What a run shows while it trains: progress, timings, and the values that callbacks read."""
