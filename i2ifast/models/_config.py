"""What the options of several systems have in common."""

from collections.abc import Iterable
from typing import Any


class Cropped:
    """For configs with `crop_size`, the width of training images, and maybe `aspect_ratio`, width / height."""

    crop_size: int
    aspect_ratio: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return round(self.crop_size / self.aspect_ratio), self.crop_size


def check_choices(config: Any, **choices: Iterable[Any]) -> None:
    """ValueError for the first of the named options whose value is none of its choices."""
    for name, known in choices.items():
        value = getattr(config, name)
        if value not in known:
            raise ValueError(f"{name} {value!r}: expected one of {', '.join(map(str, known))}")
