"""Thumbnails of a folder of JPEGs, on all CPUs; a broken file is reported and stops nothing.

Run it: python examples/thumbnails.py [folder] [--count 200]    (pip install pillow)
"""

import argparse
import logging
import sys
import tempfile
from functools import partial
from pathlib import Path

from PIL import Image, ImageChops, ImageOps

import plait

PHOTO = (1600, 1200)
THUMBNAIL = (200, 200)


def make_scene() -> Image.Image:
    """Draw something with the size and the detail of a photograph."""
    sky = Image.linear_gradient("L").resize(PHOTO)
    glow = Image.radial_gradient("L").resize(PHOTO)
    grain = Image.effect_noise((400, 300), 40).resize(PHOTO)
    return Image.merge("RGB", (sky, glow, grain))


def make_photo(folder: Path, scene: Image.Image, number: int) -> None:
    """Write the scene as it looks from another place."""
    photo = ImageChops.offset(scene, 16 * number, 9 * number)
    photo.save(folder / f"photo-{number:04}.jpg", quality=85)


def make_photos(folder: Path, count: int) -> None:
    """Write so many photos into a folder, the first one broken."""
    # The folder and the scene travel with the function, once to each worker.
    plait.map(partial(make_photo, folder, make_scene()), range(count), backend="processes")
    broken = folder / "photo-0000.jpg"
    broken.write_bytes(broken.read_bytes()[:5000])  # as after a download that was cut off


def make_thumbnail(into: Path, photo: Path, number: int) -> None:
    """Write a small copy of a photo into a folder, and log every 50th."""
    with Image.open(photo) as image:
        if number % 50 == 0:
            logging.info("photo %d, %s: %d x %d", number, photo.name, *image.size)
        image.thumbnail(THUMBNAIL)  # decodes no more of a JPEG than it needs
        ImageOps.exif_transpose(image).save(into / photo.name, quality=80)


def start_logging() -> None:
    """Log to stdout: a record of a worker says which one, what is logged here has none."""
    form, here = "%(levelname)s [%(plait_worker)s] %(message)s", {"plait_worker": "main"}
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(form, defaults=here))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def make_thumbnails(folder: Path) -> None:
    """Make thumbnails of all JPEGs in a folder, in its subfolder "thumbnails"."""
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    into = folder / "thumbnails"
    into.mkdir(exist_ok=True)
    logging.info("%d photos", len(photos))

    numbers = range(1, len(photos) + 1)
    run = plait.run(partial(make_thumbnail, into), photos, numbers, backend="processes")
    failed = [outcome for outcome in run if not outcome.ok]

    report = run.report
    print(f"{report.tasks - report.errors} thumbnails in {report.wall_s:.2f} s: ", end="")
    print(f"{report.tasks / report.wall_s:.0f} images/s on {len(report.workers)} processes")
    for outcome in failed:
        photo, _ = outcome.item
        print(f"failed: {photo.name}: {outcome.error}")


parser = argparse.ArgumentParser(description="Make thumbnails of all JPEGs in a folder.")
parser.add_argument("folder", type=Path, nargs="?", help="default: a temporary one with photos")
parser.add_argument("--count", type=int, default=200, help="so many photos (default: 200)")
options = parser.parse_args()
start_logging()

if options.folder is not None:
    make_thumbnails(options.folder)
else:
    with tempfile.TemporaryDirectory() as name:
        make_photos(Path(name), options.count)
        make_thumbnails(Path(name))
