"""Load the agent in every kernel: copy this into a profile, or append it to one's config."""

c = get_config()  # noqa: F821 (IPython defines it)

c.InteractiveShellApp.extensions.append("ipy_agent")
