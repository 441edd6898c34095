"""What a request is, whether it is let in, and what it costs."""
