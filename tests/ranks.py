"""Functions in several processes that train together."""

import faulthandler
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import TCPStore
from torch.multiprocessing import start_processes

from i2ifast.train import processes

LIMIT = 120  # seconds, after which processes are taken to wait for each other forever


def started(rank: int, function: Callable[..., None], world: int, port: int, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(LIMIT - 5)  # what it waits for
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    function(rank, *args)


def run_processes(function: Callable[..., None], *args: Any, world: int = 2) -> None:
    """`function(rank, *args)` in `world` processes as torchrun starts them, forked from one that has only imported.

    As there, they meet at a store of the process that starts them: no other takes its port before they do, and it
    is there for as long as any of them is.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["i2ifast.train", "pytest", "torch._dynamo"])
    running = start_processes(started, (function, world, store.port, args), world, False, start_method="forkserver")
    end = time.monotonic() + LIMIT
    while not running.join(timeout=1, grace_period=3):
        if time.monotonic() > end:
            for process in running.processes:
                process.kill()
            raise TimeoutError(f"{world} processes wait for each other")


def joined(rank: int, function: Callable[..., None], world: int, args: tuple[Any, ...]) -> None:
    with processes() as device:
        function(rank, world, device, *args)


def run_ranks(function: Callable[..., None], *args: Any, world: int = 2) -> None:
    """`function(rank, world, device, *args)` in `world` processes that have joined."""
    run_processes(joined, function, world, args, world=world)
