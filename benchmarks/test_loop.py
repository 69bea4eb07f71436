"""What the training loop costs beside its steps, and how many images loader processes deliver.

    pytest benchmarks/test_loop.py

Both report into extra_info: seconds of a bare step, images per second.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from maps import batches
from test_models import system_trainer

from i2ifast import train
from i2ifast.data import kind, procedural
from i2ifast.data.loader import loader
from i2ifast.models import Batch, spade

SIZE, STEPS, IMAGES, BATCH = (64, 128), 20, 64, 4


@pytest.mark.parametrize("n", [1, 4])
def test_steps_of_the_loop(compare, device, tmp_path: Path, n: int) -> None:
    """Steps by train.train, against those of its networks and optimizers alone. Nothing is logged or saved."""
    config = spade.Config(**spade.PRESETS["tiny"])
    system = spade.System(config)
    states = [net.state_dict() for net in system.nets.values()]
    bare = system_trainer(config, states, device)
    data = batches("procedural", config, SIZE, n, STEPS)
    looping = train.Loop(10**6, tmp_path, batch_size=n)
    trainer = train.Trainer(system, lambda epoch, start: data, looping, device, {})
    trainer.activations = None  # as from the second step on
    contenders: dict[str, Callable[[Batch], object]] = {
        "ours": lambda batch: trainer.step([batch]),
        "bare": lambda batch: bare.step(train.to_device(batch, device)),
    }
    compare(contenders, data, what="loop", preset="tiny", size=SIZE, batch=n, dtype="float32")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_images_of_the_loader(benchmark, tmp_path: Path, workers: int) -> None:
    """Wall time of an epoch of procedural scenes, their label plans included, once the workers are there."""
    procedural.write(tmp_path, count=IMAGES, size=SIZE)
    system = spade.System(spade.Config(**spade.PRESETS["tiny"]))
    labels = kind(system.data)
    items = labels.folder(tmp_path, "train", labels.Settings.of(system), 0, train=True)
    batches_of = loader(items, BATCH, workers)

    def epoch() -> int:
        return sum(len(batch["image"]) for batch in batches_of)

    epoch()
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        count = epoch()
        rates.append(count / (time.perf_counter() - start))
    benchmark.pedantic(epoch, rounds=1)
    benchmark.extra_info.update(
        what="loader", seconds={}, workers=workers, size=SIZE, images_per_second=sorted(rates)[1]
    )
