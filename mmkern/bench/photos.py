"""Real photographs, and inputs made of them.

The photographs are four that the scikit-image wheel carries; nothing is downloaded.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F

FILES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
SOURCE = (
    "photographs bundled with scikit-image: astronaut (NASA, public domain), chelsea, coffee and "
    "rocket (CC0)"
)
PATCH = 8


class PhotographsMissing(RuntimeError):
    """The package that carries the photographs, or one of its files, is not there."""


@functools.cache
def photographs():
    """The photographs as uint8 tensors (3, H, W), each of its own size.

    Raises:
        PhotographsMissing: scikit-image is not installed, or came without its bundled images.
    """
    try:
        import skimage.data
        from skimage.io import imread
    except ImportError as error:
        raise PhotographsMissing(
            "mmkern bench runs on photographs bundled with scikit-image, which is not installed; "
            "pip install scikit-image"
        ) from error
    folder = Path(skimage.data.__file__).parent
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise PhotographsMissing(
            f"mmkern bench runs on photographs bundled with scikit-image, but {', '.join(missing)} "
            f"is not in {folder}; pip install --force-reinstall scikit-image"
        )
    return tuple(torch.from_numpy(imread(folder / n)).permute(2, 0, 1) for n in FILES)


@functools.cache
def resized(index, height, width):
    """Photograph ``index`` (counted round) cut to the aspect of height x width and resized to it.

    Returns:
        (3, height, width), float32 in [-1, 1].
    """
    photo = photographs()[index % len(FILES)]
    scale = min(photo.shape[1] / height, photo.shape[2] / width)
    h, w = round(height * scale), round(width * scale)
    top, left = (photo.shape[1] - h) // 2, (photo.shape[2] - w) // 2
    cut = photo[:, top : top + h, left : left + w].float()[None] / 127.5 - 1
    size = (height, width)
    return F.interpolate(cut, size, mode="bicubic", antialias=True, align_corners=False)[0]


def pixels(batch, channels, height, width):
    """(batch, channels, height, width) in [-1, 1]; beyond 3 channels, the colours repeat."""
    images = torch.stack([resized(i, height, width) for i in range(batch)])
    return images[:, [c % 3 for c in range(channels)]]


def patches(count, width):
    """``count`` flattened patches (count, width) of the photographs, in raster order."""
    side = 1
    while 3 * side * side < width:
        side += 1
    columns = 1
    while columns * columns < count:
        columns += 1
    per_image = columns * columns
    image = resized(0, columns * side, columns * side)
    cells = image.unfold(1, side, side).unfold(2, side, side)
    cells = cells.permute(1, 2, 0, 3, 4).reshape(per_image, 3 * side * side)
    return cells[:count, :width]


def activations(rows, channels, generator):
    """Rows (rows, channels) that a model sees: patches of the photographs through a linear layer.

    The layer is untrained; each row is normalised to unit variance. Neighbouring rows are alike, as
    tokens of a picture are. There are 3136 rows in the four photographs; beyond, they repeat.
    """
    cells = patches_of_all()[:rows]
    weight = torch.randn(cells.shape[1], channels, generator=generator) / cells.shape[1] ** 0.5
    out = F.layer_norm(cells @ weight, (channels,))
    return out.repeat(-(-rows // len(out)), 1)[:rows]


@functools.cache
def patches_of_all():
    """28 x 28 patches of 8 x 8 pixels of each photograph: (3136, 192)."""
    images = pixels(len(FILES), 3, 28 * PATCH, 28 * PATCH)
    cells = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return cells.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH * PATCH)
