"""Functions in several processes that train together."""

import faulthandler
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing import start_processes

from i2ifast.train import processes

LIMIT = 120  # seconds, after which processes are taken to wait for each other forever


def joined(rank: int, function: Callable[..., None], world: int, port: int, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(LIMIT - 5)  # what it waits for
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{world}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    with processes() as device:
        function(rank, world, device, *args)


def run_ranks(function: Callable[..., None], *args: Any, world: int = 2) -> None:
    """`function(rank, world, device, *args)` in `world` processes, forked from one that has only imported."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    multiprocessing.get_context("forkserver").set_forkserver_preload(["i2ifast.train", "pytest", "torch._dynamo"])
    started = start_processes(joined, (function, world, port, args), world, join=False, start_method="forkserver")
    end = time.monotonic() + LIMIT
    while not started.join(timeout=1, grace_period=3):
        if time.monotonic() > end:
            for process in started.processes:
                process.kill()
            raise TimeoutError(f"{world} processes wait for each other")
