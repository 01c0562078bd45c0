"""Cartoon faces that move: the faces of avatar_art.py, painted over time. One of four motions is in each clip."""

import io
import random

from PIL import Image, ImageColor

from zigma_jax.data.datasets import avatar_art, avatar_words

SEED = 1  # other faces than those of `avatars`
FRAMES = 16  # of every clip; they look best at 8 a second
MOTIONS = {
    "blinking": "blinks",
    "talking": "talks",
    "turning colour": "turns",
    "sliding": "slides from side to side",
}
"""The classes, and what the captions say."""
_TALK = ("serious", "speaking", "smiling", "speaking")  # the mouths of a word
_BLINK = 5  # frames from one blink to the next; each lasts two
_REACH = 0.4  # of the picture's width, to the left and to the right


def draw_clip(split: str, index: int) -> tuple[dict[str, str], str, str]:
    """The attributes of the face in clip `index` of a split, its motion, and the background at the end.

    A pure function of its arguments. Faces that blink have eyes to be seen, and the background only changes in faces
    that turn colour.
    """
    drawn = avatar_art.draw_attributes(split, index, SEED)
    rng = random.Random(f"motion/{split}/{index}")
    motion = list(MOTIONS)[int(rng.random() * len(MOTIONS))]
    if motion == "blinking":
        drawn |= {"glasses": "none"} if drawn["glasses"] == "sunglasses" else {}
        drawn |= {"eyes": "open"} if drawn["eyes"] in ("happy", "winking", "squinting") else {}
    others = [name for name in avatar_art.BACKGROUNDS if name != drawn["background"]]
    end = others[int(rng.random() * len(others))] if motion == "turning colour" else drawn["background"]
    return drawn, motion, end


def captions(drawn: dict[str, str], motion: str, end: str) -> list[str]:
    """English captions, each of which says what the face does, and what it looks like as those of `avatars` do."""
    says = MOTIONS[motion] + (f" from {drawn['background']} to {end}" if motion == "turning colour" else "")
    what = "the background" if motion == "turning colour" else "the face"
    return [f"{text.rstrip('.')}; {what} {says}" for text in avatar_words.captions(drawn)]


def clip(split: str, index: int, size: int) -> list[bytes]:
    """The frames of a clip, each an RGB PNG of `size` x `size` pixels."""
    encoded = []
    for frame in paint(split, index, size):
        out = io.BytesIO()
        frame.save(out, "PNG", compress_level=4)
        encoded.append(out.getvalue())
    return encoded


def paint(split: str, index: int, size: int) -> list[Image.Image]:
    """The frames of a clip: `FRAMES` RGB pictures of `size` x `size` pixels."""
    drawn, motion, end = draw_clip(split, index)
    phase = int(random.Random(f"phase/{split}/{index}").random() * FRAMES)
    frames = []
    for number in range(FRAMES):
        time, face, moved = number + phase, dict(drawn), 0
        if motion == "blinking" and time % _BLINK < 2:
            face["eyes"] = avatar_art.SHUT
        elif motion == "talking":
            face["mouth"] = _TALK[time % len(_TALK)]
        elif motion == "sliding":
            moved = round((2 * _to_and_fro(time) - 1) * _REACH * size)
        share = _to_and_fro(time) if motion == "turning colour" else 0.0
        colours = [ImageColor.getrgb(avatar_art.BACKGROUNDS[name]) for name in (drawn["background"], end)]
        blended = tuple(round((1 - share) * a + share * b) for a, b in zip(*colours, strict=True))
        image = Image.new("RGBA", (size, size), blended)
        for layer in avatar_art.layers(face, size):
            image.alpha_composite(layer, (max(moved, 0), 0), (max(-moved, 0), 0))
        frames.append(image.convert("RGB"))
    return frames


def _to_and_fro(time: int) -> float:
    """From 0 to 1 and back at an even pace, in `FRAMES` frames."""
    return 1 - abs(2 * (time % FRAMES) / FRAMES - 1)
