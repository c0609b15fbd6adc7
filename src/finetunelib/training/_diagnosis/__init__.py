"""What is wrong with a training run: findings about data, model, loss and optimizer."""
