"""The Responses API as both ends see it: no sockets, clocks, tasks or logging in here."""
