"""What a training run learns: rows, a loss, and evaluations."""
