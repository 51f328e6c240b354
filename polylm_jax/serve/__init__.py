"""Answers to many at once, over the network: an engine, and the forms of OpenAI's API around it."""
