"""Pictures and the control maps that OpenCV and numpy make of them: `python make.py <folder of world.py and concepts/>` writes both beside it.

Pictures: scenes and concepts of the procedural world that the pocket model was trained on, pictures that the pocket model drew
(docs/pictures/pocket.png), a gradient and noise. `<name>.png` is the picture, `<name>.canny-<low>-<high>-<l1 | l2>.png` OpenCV's Canny of it.
Needs numpy and opencv-python-headless. Scribble follows the formula of controlnet_aux's scribble_xdog, but counts beyond 255 where that wraps.
"""
import pathlib
import sys

import cv2
import numpy as np

HERE = pathlib.Path(__file__).parent
world_folder = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(world_folder))
import world  # noqa: E402

cv2.setNumThreads(1)
random = np.random.default_rng(3)


def rgb(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def write(name, picture):
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(HERE / f"{name}.png"), picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def pictures():
    for seed in (3, 14, 15, 92):
        picture = world.make(seed)[0]
        yield f"scene-{seed}", picture if picture.dtype == np.uint8 else np.clip(np.round(picture * 255), 0, 255).astype(np.uint8)
    yield "rocket", rgb(world_folder / "concepts/object-rocket/train-1.png")
    yield "risograph", rgb(world_folder / "concepts/style-risograph/train-2.png")
    drawn = rgb(HERE.parents[2] / "docs/pictures/pocket.png")
    yield "pocket-0", np.ascontiguousarray(drawn[:, :128])
    yield "pocket-3", np.ascontiguousarray(drawn[:, 384:512])
    y, x = np.mgrid[:97, :131]
    yield "gradient", np.stack([x * 255 / 130, y * 255 / 96, 127.5 + 127.5 * np.sin(x * y / 300)], 2).astype(np.uint8)
    coarse = random.integers(0, 256, (9, 14, 3)).astype(np.float32)
    grain = random.normal(0, 12, (75, 110, 3))
    yield "noise", np.clip(cv2.resize(coarse, (110, 75), interpolation=cv2.INTER_CUBIC) + grain, 0, 255).astype(np.uint8)


def scribble(picture, threshold):
    fine, coarse = (cv2.GaussianBlur(picture.astype(np.float32), (0, 0), sigma) for sigma in (0.5, 5.0))
    paper = (255 - np.min(coarse - fine, axis=2)).clip(0, 255).astype(np.uint8)
    return np.where(2 * (255 - paper.astype(int)) > threshold, 255, 0).astype(np.uint8)


def tile(picture, factor):
    """Means of squares, then straight lines between their centres: numpy.interp along each axis."""
    height, width, _ = picture.shape
    mean = lambda v, axis: np.stack([part.mean(axis) for part in np.split(v, range(factor, v.shape[axis], factor), axis)], axis)
    small = mean(mean(picture.astype(np.float64), 0), 1)

    def stretch(v, size):
        at = (np.arange(size) + 0.5) / factor - 0.5
        return np.stack([np.apply_along_axis(lambda line: np.interp(at, np.arange(v.shape[0]), line), 0, v)])[0]

    tall = stretch(small, height)
    return np.floor(stretch(tall.transpose(1, 0, 2), width).transpose(1, 0, 2) + 0.5).astype(np.uint8)


def main():
    for name, picture in pictures():
        write(name, picture)
        for low, high, l2 in ((100, 200, False), (100, 200, True), (40, 90, False), (60.5, 61.5, True)):
            write(f"{name}.canny-{low}-{high}-{'l2' if l2 else 'l1'}", cv2.Canny(picture, low, high, apertureSize=3, L2gradient=l2))
        if name in ("scene-3", "gradient", "noise"):
            write(f"{name}.scribble-32", scribble(picture, 32))
            write(f"{name}.tile-8", tile(picture, 8))
            write(f"{name}.blur-9", cv2.GaussianBlur(picture, (0, 0), 9.0))
            grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
            write(f"{name}.mask-128", np.where(grey >= 128, 255, 0).astype(np.uint8))
            write(f"{name}.mask-null", grey)


main()
