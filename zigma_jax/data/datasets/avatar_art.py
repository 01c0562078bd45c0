"""Cartoon faces: attributes drawn from (seed, split, index), written as SVG by python-avatars, painted by
resvg.

The file is also a program of its own, so that a second core can paint: `python -P avatar_art.py SPLIT
START STOP STEP SIZE` writes the PNGs to stdout, each after its length. A plain child interpreter is used
because forking a process that runs JAX is unsafe, and multiprocessing's spawn would import the caller's
whole program again in every child.
"""

import io
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator

import python_avatars as pa
import resvg_py
from PIL import Image

SEED = 0

# The hair or headwear is the class: the one attribute that shows at any resolution.
TOPS = {
    "bald head": pa.HairType.NONE,
    "short hair": pa.HairType.SHORT_FLAT,
    "short curls": pa.HairType.SHORT_CURLY,
    "shaggy hair": pa.HairType.SHAGGY,
    "quiff": pa.HairType.QUIFF,
    "mohawk": pa.HairType.MOHAWK,
    "cornrows": pa.HairType.CORNROWS,
    "bun": pa.HairType.BUN,
    "bob": pa.HairType.BOB,
    "half-long hair": pa.HairType.LONG_NOT_TOO_LONG,
    "long hair": pa.HairType.STRAIGHT_1,
    "long hair with a fringe": pa.HairType.STRAIGHT_STRAND,
    "long wavy hair": pa.HairType.LOOSE_HAIR,
    "curls": pa.HairType.CURLY,
    "afro": pa.HairType.FRO,
    "dreadlocks": pa.HairType.DREADS,
    "hijab": pa.HatType.HIJAB,
    "turban": pa.HatType.TURBAN,
    "woolly hat": pa.HatType.WINTER_HAT_3,
    "wide hat": pa.HatType.HAT,
}
_WITH_BEARD = (
    "bald head",
    "short hair",
    "short curls",
    "shaggy hair",
    "quiff",
    "mohawk",
    "turban",
    "woolly hat",
)

HAIR_COLOURS = {
    "auburn": pa.HairColor.AUBURN,
    "black": pa.HairColor.BLACK,
    "dark blond": pa.HairColor.BLONDE,
    "golden": pa.HairColor.BLONDE_GOLDEN,
    "brown": pa.HairColor.BROWN,
    "pink": pa.HairColor.PASTEL_PINK,
    "platinum": pa.HairColor.PLATINUM,
    "red": pa.HairColor.RED,
    "silver": pa.HairColor.SILVER_GRAY,
}
SKINS = {
    "pale": pa.SkinColor.PALE,
    "light": pa.SkinColor.LIGHT,
    "brown": pa.SkinColor.BROWN,
    "dark brown": pa.SkinColor.DARK_BROWN,
    "black": pa.SkinColor.BLACK,
}
BEARDS = {
    "none": pa.FacialHairType.NONE,
    "short beard": pa.FacialHairType.BEARD_LIGHT,
    "beard": pa.FacialHairType.BEARD_MEDIUM,
    "long beard": pa.FacialHairType.BEARD_MAGESTIC,
    "moustache": pa.FacialHairType.MOUSTACHE_MAGNUM,
}
GLASSES = {
    "none": pa.AccessoryType.NONE,
    "glasses": pa.AccessoryType.PRESCRIPTION_2,
    "round glasses": pa.AccessoryType.ROUND,
    "sunglasses": pa.AccessoryType.SUNGLASSES,
}
EYES = {
    "open": pa.EyeType.DEFAULT,
    "happy": pa.EyeType.HAPPY,
    "looking aside": pa.EyeType.SIDE,
    "squinting": pa.EyeType.SQUINT,
    "surprised": pa.EyeType.SURPRISED,
    "winking": pa.EyeType.WINK,
}
EYEBROWS = {
    "curved": pa.EyebrowType.DEFAULT,
    "thick": pa.EyebrowType.DEFAULT_NATURAL,
    "flat": pa.EyebrowType.FLAT_NATURAL,
    "raised": pa.EyebrowType.RAISED_EXCITED_NATURAL,
    "uneven": pa.EyebrowType.UP_DOWN_NATURAL,
}
MOUTHS = {
    "speaking": pa.MouthType.DEFAULT,
    "smiling": pa.MouthType.SMILE,
    "laughing": pa.MouthType.BIG_SMILE,
    "smirking": pa.MouthType.TWINKLE,
    "serious": pa.MouthType.SERIOUS,
}
CLOTHES = {
    "T-shirt": pa.ClothingType.SHIRT_CREW_NECK,
    "V-neck shirt": pa.ClothingType.SHIRT_V_NECK,
    "hoodie": pa.ClothingType.HOODIE,
    "jumper with a collar": pa.ClothingType.COLLAR_SWEATER,
    "pair of dungarees": pa.ClothingType.OVERALL,
    "blazer": pa.ClothingType.BLAZER_SHIRT,
}
CLOTH_COLOURS = {
    "black": pa.ClothingColor.BLACK,
    "light blue": pa.ClothingColor.BLUE_01,
    "blue": pa.ClothingColor.BLUE_02,
    "navy": pa.ClothingColor.BLUE_03,
    "grey": pa.ClothingColor.GRAY_02,
    "green": "#4CAF7A",
    "orange": "#F5A04C",
    "yellow": "#F7D154",
    "pink": pa.ClothingColor.PINK,
    "red": pa.ClothingColor.RED,
    "white": pa.ClothingColor.WHITE,
}
BACKGROUNDS = {
    "sky": "#8FD3F4",
    "mint": "#A8E6CF",
    "lemon": "#FFF1A8",
    "peach": "#FFCBA4",
    "rose": "#F9B4C4",
    "lilac": "#CDB4F6",
    "sand": "#E8DCC4",
    "teal": "#4FB3BF",
}

ATTRIBUTES = {
    "top": TOPS,
    "top_colour": HAIR_COLOURS | CLOTH_COLOURS,  # of the hair, or of the headwear
    "hair_colour": HAIR_COLOURS,  # of the beard too
    "skin": SKINS,
    "beard": BEARDS,
    "glasses": GLASSES,
    "eyes": EYES,
    "eyebrows": EYEBROWS,
    "mouth": MOUTHS,
    "clothes": CLOTHES,
    "clothes_colour": CLOTH_COLOURS,
    "background": BACKGROUNDS,
}
"""Every attribute and the values it takes: python-avatars' parts, or colours."""


def draw_attributes(split: str, index: int, seed: int = SEED) -> dict[str, str]:
    """The attributes of avatar `index` of a split: a pure function of its arguments, the same on every
    machine.

    Only `random()` is used: of Python's generator, that method alone is promised never to change its
    sequence.
    """
    rng = random.Random(f"{seed}/{split}/{index}")

    def pick(values: dict, first: float = 0.0) -> str:  # `first`: extra probability of the first value
        names = list(values)
        r = rng.random()
        return names[0] if r < first else names[int((r - first) / (1 - first) * len(names))]

    top = pick(TOPS)
    hair_colour = pick(HAIR_COLOURS)
    headwear_colour = pick(CLOTH_COLOURS)
    drawn = {
        "top": top,
        "top_colour": headwear_colour if isinstance(TOPS[top], pa.HatType) else hair_colour,
        "hair_colour": hair_colour,
        "skin": pick(SKINS),
        "beard": pick(BEARDS, first=0.4),
        "glasses": pick(GLASSES, first=0.5),
        "eyes": pick(EYES, first=0.4),
        "eyebrows": pick(EYEBROWS),
        "mouth": pick(MOUTHS),
        "clothes": pick(CLOTHES),
        "clothes_colour": pick(CLOTH_COLOURS),
        "background": pick(BACKGROUNDS),
    }
    if top not in _WITH_BEARD:
        drawn["beard"] = "none"
    return drawn


def caption(drawn: dict[str, str]) -> str:
    """One English sentence that names what can be seen."""
    parts = [drawn["top"] if drawn["top"] == "bald head" else f"{drawn['top_colour']} {drawn['top']}"]
    parts += [f"{drawn['skin']} skin"]
    parts += [f"{drawn['hair_colour']} {drawn['beard']}"] if drawn["beard"] != "none" else []
    parts += [drawn["glasses"]] if drawn["glasses"] != "none" else []
    return (
        f"a {drawn['mouth']} cartoon face with {', '.join(parts)}, "
        f"in a {drawn['clothes_colour']} {drawn['clothes']}, on {drawn['background']}"
    )


def svg(drawn: dict[str, str]) -> str:
    """The picture as SVG, without its background, the drawing's 264 x 280 cut to a square around the head."""
    value = {key: ATTRIBUTES[key][name] for key, name in drawn.items()}
    text = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        top=value["top"],
        hat_color=value["top_colour"],
        hair_color=value["hair_colour"],
        facial_hair_color=value["hair_colour"],
        skin_color=value["skin"],
        facial_hair=value["beard"],
        accessory=value["glasses"],
        eyes=value["eyes"],
        eyebrows=value["eyebrows"],
        mouth=value["mouth"],
        nose=pa.NoseType.DEFAULT,
        clothing=value["clothes"],
        clothing_color=value["clothes_colour"],
    ).render()
    whole = 'width="264px" height="280px" viewBox="0 0 264 280"'
    if whole not in text:
        raise RuntimeError(
            "python-avatars' drawing is no longer 264 x 280: the crop around the head must be revised"
        )
    return text.replace(whole, 'width="224" height="224" viewBox="20 14 224 224"', 1)


def png(drawn: dict[str, str], size: int) -> bytes:
    """The picture as an RGB PNG of `size` x `size` pixels, antialiased."""
    painted = resvg_py.svg_to_bytes(
        svg_string=svg(drawn),
        width=size,
        height=size,
        background=BACKGROUNDS[drawn["background"]],
        skip_system_fonts=True,
    )
    out = io.BytesIO()
    Image.open(io.BytesIO(painted)).convert("RGB").save(out, "PNG")
    return out.getvalue()


def paint(split: str, count: int, size: int, workers: int | None = None) -> Iterator[bytes]:
    """PNGs of avatars 0 … count − 1 of a split, in order, painted by `workers` processes (None: one a core).

    Raises RuntimeError if a process ends early.
    """
    workers = workers or min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, 16)
    if workers == 1 or count < 512:  # below that, starting interpreters costs more than it saves
        for index in range(count):
            yield png(draw_attributes(split, index), size)
        return
    command = [sys.executable, "-P", __file__, split]
    children = [
        subprocess.Popen([*command, str(start), str(count), str(workers), str(size)], stdout=subprocess.PIPE)
        for start in range(workers)
    ]
    try:
        for index in range(count):
            yield _read_framed(children[index % workers], index)
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _read_framed(child: subprocess.Popen, index: int) -> bytes:
    assert child.stdout is not None
    head = child.stdout.read(4)
    body = child.stdout.read(struct.unpack("<I", head)[0]) if len(head) == 4 else b""
    if not body:
        raise RuntimeError(
            f"the process painting avatar {index} ended early, with exit status {child.wait()}"
        )
    return body


def main() -> None:
    split, (start, stop, step, size) = sys.argv[1], map(int, sys.argv[2:])
    for index in range(start, stop, step):
        picture = png(draw_attributes(split, index), size)
        sys.stdout.buffer.write(struct.pack("<I", len(picture)) + picture)


if __name__ == "__main__":
    main()
