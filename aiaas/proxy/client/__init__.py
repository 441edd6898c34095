"""The open side: connections, who they are, what they ask and what they get."""
