"""What `make ui` starts."""

from __future__ import annotations

import socket
from pathlib import Path

from bench.cluster import free_port
from flows.ui import commands

DATABASE = Path("mlruns/mlflow.db")


def test_both_pages_are_served_where_nothing_listens():
    started = commands(DATABASE, free_port(), free_port())
    assert [words[0] for words in started] == ["mlflow", "prefect"]
    assert "sqlite:///mlruns/mlflow.db" in started[0]


def test_a_prefect_server_that_runs_already_is_left_to_serve_its_page():
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = commands(DATABASE, free_port(), server.getsockname()[1])
    assert [words[0] for words in started] == ["mlflow"]
