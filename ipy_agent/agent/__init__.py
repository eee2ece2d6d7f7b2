"""The agent: ask the model, run the tools it calls, ask again."""
