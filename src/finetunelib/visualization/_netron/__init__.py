"""The Netron viewer: its page, its server, and the files that it opens."""
