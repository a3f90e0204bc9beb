"""Makes one thumbnail: run as a process of its own, by its path, and never imported.

    python thumbnail_process.py WIDTH HEIGHT crop|scale ANIMATED MAX_PIXELS < image > thumbnail

Decoders are where hostile images do harm. So this process knows nothing of the server, limits its own memory and CPU
time before it reads anything, and speaks by its output (a content type, a line end, the image) and its exit code alone.
"""

import io
import os
import resource
import sys

TOO_LARGE, NO_IMAGE, ORIGINAL = 3, 4, 5
"""Exit codes. ORIGINAL: the image is as small as its thumbnail would be; the output is its content type."""

CPU_SECONDS = 20
BASE_MEMORY = 512 * 1024 * 1024
BYTES_PER_PIXEL = 16
"""For the decoded image, a converted copy, and what is made of it."""

FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}
"""MPO is a JPEG with a second picture in it, as phones make them."""
MAX_FRAMES = 200


def limit(max_pixels: int) -> None:
    """Memory, CPU time, and no files at all."""
    memory = BASE_MEMORY + BYTES_PER_PIXEL * max_pixels
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


limit(int(sys.argv[5]))
os.nice(5)  # who asks for a thumbnail holds nobody up who does not

from PIL import Image, ImageOps  # noqa: E402  # under the limits, too

Image.MAX_IMAGE_PIXELS = None  # the size is checked below, before anything is decoded


def box_of(image: tuple[int, int], wanted: tuple[int, int], *, crop: bool) -> tuple[int, int]:
    """The thumbnail's size: at least what is wanted as far as the image goes, and never more than the image."""
    width, height = image
    if crop:
        factor = min(1.0, width / wanted[0], height / wanted[1])
        return max(1, round(wanted[0] * factor)), max(1, round(wanted[1] * factor))
    factor = min(1.0, max(wanted[0] / width, wanted[1] / height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def make_frame(image: Image.Image, box: tuple[int, int], *, crop: bool) -> Image.Image:
    """One picture in the thumbnail's size and in a mode that can be written."""
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    frame = image.convert("RGBA" if has_alpha else "RGB")
    if crop:
        return ImageOps.fit(frame, box, Image.Resampling.LANCZOS)
    return frame if frame.size == box else frame.resize(box, Image.Resampling.LANCZOS)


def make(image: Image.Image, wanted: tuple[int, int], *, crop: bool, animated: bool, max_pixels: int) -> bytes | None:
    """The output; None where the original serves."""
    frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    moves = animated and 1 < frames <= MAX_FRAMES and frames * image.width * image.height <= 4 * max_pixels
    is_small = image.width <= wanted[0] and image.height <= wanted[1]
    if is_small and (moves or frames == 1):
        image.load()  # what is cut off is no image
        return None
    output = io.BytesIO()
    if moves:
        box = box_of(image.size, wanted, crop=crop)
        pictures, durations = [], []
        for number in range(frames):
            image.seek(number)
            pictures.append(make_frame(image, box, crop=crop))
            durations.append(int(image.info.get("duration") or 100))
        pictures[0].save(
            output, "WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=75, method=2
        )
        return b"image/webp\n" + output.getvalue()
    if image.format in ("JPEG", "MPO"):
        image.draft("RGB", (2 * wanted[0], 2 * wanted[1]))
    upright = ImageOps.exif_transpose(image)
    picture = make_frame(upright, box_of(upright.size, wanted, crop=crop), crop=crop)
    if picture.mode == "RGB" and image.format != "PNG":
        picture.save(output, "JPEG", quality=80)
        return b"image/jpeg\n" + output.getvalue()
    picture.save(output, "PNG")
    return b"image/png\n" + output.getvalue()


def main(arguments: list[str]) -> int:
    """Read the image, write its thumbnail; the exit code says how it went."""
    wanted, max_pixels = (int(arguments[0]), int(arguments[1])), int(arguments[4])
    try:
        with Image.open(sys.stdin.buffer, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                return TOO_LARGE
            made = make(image, wanted, crop=arguments[2] == "crop", animated=arguments[3] == "1", max_pixels=max_pixels)
            content_type = TYPES[image.format or ""]
    except MemoryError:
        return TOO_LARGE
    except Exception:  # whatever a decoder raises at a broken image
        return NO_IMAGE
    sys.stdout.buffer.write(made if made is not None else content_type.encode() + b"\n")
    sys.stdout.buffer.flush()
    return ORIGINAL if made is None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
