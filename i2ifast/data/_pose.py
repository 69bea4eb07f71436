"""Poses as OpenPose finds them, and what networks take of them.

Cao, Hidalgo, Simon, Wei, Sheikh. OpenPose: Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields. 2018.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .pixels import Geometry

JOINTS = 18
# Joints that limbs join: nose 0, neck 1, arms 2-4 and 5-7, legs 8-10 and 11-13, eyes 14, 15, ears 16, 17.
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
         (1, 0), (0, 14), (14, 16), (0, 15), (15, 17))  # fmt: skip
# Hues from red to violet, one per joint and limb.
COLOURS = ((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
           (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255),
           (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85))  # fmt: skip
CHANNELS = 3 + len(LIMBS)


def read(candidates: Path) -> np.ndarray:
    """Joints [18,2] float (x, y), NaN where there is none, of the first person in *_candidate.txt and *_subset.txt.

    ValueError for files that are not OpenPose's.
    """
    subset = candidates.with_name(candidates.name.replace("_candidate", "_subset"))
    found = []
    for file in (candidates, subset):
        try:
            found.append(np.loadtxt(file, ndmin=2))
        except ValueError as error:
            raise ValueError(f"{file}: not a table of numbers ({error})") from error
    points, people = found
    joints = np.full((JOINTS, 2), np.nan)
    if not people.size:
        return joints
    if people.shape[1] < JOINTS or points.shape[1] < 2:
        raise ValueError(f"{subset}: {people.shape[1]} columns, expected {JOINTS} joints and two scores")
    for joint, number in enumerate(people[0, :JOINTS].astype(int)):
        if number >= len(points):
            raise ValueError(f"{subset}: point {number}, but {candidates} has {len(points)}")
        if number >= 0:
            joints[joint] = points[number, :2]
    return joints


def maps(joints: np.ndarray, size: tuple[int, int], where: Geometry) -> Tensor:
    """A pose in an image of `size` (width, height), placed: [20,H,W] float32.

    Three channels show it as sticks and dots in colours, in [-1, 1]; 17 have the L1 distance to each limb, in units of
    255 pixels of the resized image, at most 1, which it is for limbs that were not found.
    """
    joints = where.points(joints + 0.5, size) - 0.5
    width, height = where.box[2] - where.box[0], where.box[3] - where.box[1]
    shown = Image.new("RGB", (width, height))
    draw, thick = ImageDraw.Draw(shown), max(1, min(width, height) // 64)
    distances = []
    for limb, colour in zip(LIMBS, COLOURS, strict=False):
        ends = [tuple(joints[joint]) for joint in limb]
        mask = Image.new("1", (width, height))
        if np.isfinite(ends).all():
            draw.line(ends, fill=tuple(int(0.6 * c) for c in colour), width=2 * thick)
            ImageDraw.Draw(mask).line(ends, fill=1)
        distances.append(np.minimum(distance(np.array(mask)) / 255, 1))
    for joint, colour in zip(joints, COLOURS, strict=True):
        if np.isfinite(joint).all():
            x, y = joint
            draw.ellipse((x - thick, y - thick, x + thick, y + thick), fill=colour)
    colours = torch.from_numpy(np.array(shown)).permute(2, 0, 1) / 127.5 - 1
    return torch.cat([colours, torch.from_numpy(np.stack(distances)).float()])


def distance(mask: np.ndarray) -> np.ndarray:
    """L1 distance [H,W] of each pixel to the nearest that is set, infinite where none is."""
    far = np.where(mask, 0.0, np.inf)
    for axis in (0, 1):
        far = np.moveaxis(far, axis, 0)
        position = np.arange(len(far))[:, None]
        before = np.minimum.accumulate(far - position) + position
        after = np.minimum.accumulate((far + position)[::-1])[::-1] - position
        far = np.moveaxis(np.minimum(before, after), 0, axis)
    return far
