"""Label maps of faces from CelebAMask-HQ's masks, a file for each part."""

from pathlib import Path

import numpy as np

from ._cache import Cache
from .pixels import images_in, natural, read_map

FOLDER = "CelebAMask-HQ-mask-anno"  # with folders 0 to 14
MERGED = "all_parts_except_glasses"  # the folder in it that has label maps
SUFFIX = ".parts"  # of names that stand for all masks of a face

# Classes of label maps, in the order in which masks are painted: what lies over others comes later. Glasses, which have
# the class 16, are left out as in MERGED.
CLASSES = {"skin": 1, "nose": 9, "l_eye": 5, "r_eye": 6, "l_brow": 3, "r_brow": 4, "l_ear": 7, "r_ear": 8, "mouth": 11,
           "u_lip": 10, "l_lip": 12, "hair": 2, "hat": 15, "ear_r": 17, "neck_l": 18, "neck": 13,
           "cloth": 14}  # fmt: skip


def faces(root: Path) -> list[Path]:
    """A name NNNNN.parts, which is no file, for each face that has masks, in natural order."""
    found = set()
    for folder in filter(Path.is_dir, (root / FOLDER).glob("*")):
        found |= {folder / f"{file.name.partition('_')[0]}{SUFFIX}" for file in images_in(folder) if "_" in file.stem}
    return sorted(found, key=lambda path: natural(Path(path.name)))


def mask(label: Path, part: str) -> Path | None:
    """The mask of a part of the face that a label map of MERGED, or a name of `faces`, is of, if there is one."""
    folder = label.parent
    if label.suffix != SUFFIX and folder.name == MERGED:
        folder = folder.parent / str(int(label.stem) // 2000)
    file = folder / f"{label.stem}_{part}.png"
    return file if file.exists() else None


def merge(face: Path, cache: Cache | None = None) -> np.ndarray:
    """Label map [H,W] int32 of a name of `faces`; ValueError for masks of different sizes."""
    label = None
    for part, number in CLASSES.items():
        file = mask(face, part)
        if file is None:
            continue
        shown = read_map(file, cache) > 0
        if label is None:
            label = np.zeros(shown.shape, np.int32)
        if shown.shape != label.shape:
            raise ValueError(f"{file}: {shown.shape[1]}x{shown.shape[0]} pixels, other than the face's other masks")
        label[shown] = number
    if label is None:
        raise ValueError(f"{face}: no masks of parts but of glasses")
    return label
