"""Training: loop, losses, batches, several processes, and what is fitted after the last step."""
