"""The task of one class for each token: language models and token classification."""
