"""Plots of histories, predictions and confusions."""
