"""The parts of the census: which files there are, what one of them holds, what they add up to, and how to show it."""
