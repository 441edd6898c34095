"""Coverage-guided fuzzing of everything that reads bytes of a client, a backend or an operator."""
