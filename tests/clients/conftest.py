"""Clients and servers that others wrote, brought together with ours on loopback."""

from __future__ import annotations

import os

import openai
import pytest

from ipy_agent.agent.tools import TOOLS
from ipy_agent.sessions import Session


@pytest.fixture
def guest(served):
    """Return a function that serves a script and returns OpenAI's own client for it."""
    made = []

    def start(script=(), *, key=None, retries=0, kind=openai.OpenAI, **options):
        endpoint = served(script, **options)
        key = os.environ[endpoint.key_env] if key is None else key
        made.append(kind(base_url=endpoint.url, api_key=key, max_retries=retries))
        return made[-1]

    yield start
    for client in made:
        if isinstance(client, openai.OpenAI):
            client.close()


@pytest.fixture
def new():
    """Return a function that makes a session of ours and sees to its end."""
    made = []

    def make(*args, **settings):
        made.append(Session(*args, **settings))
        return made[-1]

    yield make
    for session in made:
        session.close()


@pytest.fixture(autouse=True)
def tools():
    """The tools of the process are those of the test."""
    before = dict(TOOLS)
    TOOLS.clear()
    yield TOOLS
    TOOLS.clear()
    TOOLS.update(before)
