"""Parameter groups with learning rates by depth."""
