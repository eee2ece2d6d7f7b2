"""The embedded server: the Responses API over an engine of this machine."""
