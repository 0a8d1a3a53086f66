"""vLLM as the engine of a test: what it can serve, what is written for it, and how it is asked."""
