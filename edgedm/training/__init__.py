"""Training: data, noising, losses, loops, quality figures."""
