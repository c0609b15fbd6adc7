"""Plots of training histories, predictions and confusion matrices."""
