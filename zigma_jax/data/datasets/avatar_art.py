"""Cartoon faces: attributes drawn from (seed, split, index), parts by python-avatars, painted by resvg.

An avatar is five layers on a plain background, and each layer depends on a few of the attributes only. So
the layers are painted once (some 900 in all) and put together by Pillow, eight times faster than painting
each avatar whole.
"""

import functools
import io
import random
from typing import Any
from xml.etree import ElementTree

import python_avatars as pa
import resvg_py
from PIL import Image

SEED = 0

# The hair or headwear is the class: the one attribute that shows at any resolution. Only Avataaars' own
# parts are used here and below, not those that python-avatars took from elsewhere.
TOPS = {
    "bald head": pa.HairType.NONE,
    "short hair": pa.HairType.SHORT_FLAT,
    "short curls": pa.HairType.SHORT_CURLY,
    "shaggy hair": pa.HairType.SHAGGY,
    "short waves": pa.HairType.SHORT_WAVED,
    "hair at the sides": pa.HairType.SIDES,
    "short dreads": pa.HairType.SHORT_DREADS_1,
    "bun": pa.HairType.BUN,
    "bob": pa.HairType.BOB,
    "half-long hair": pa.HairType.LONG_NOT_TOO_LONG,
    "long hair": pa.HairType.STRAIGHT_1,
    "long hair with a fringe": pa.HairType.STRAIGHT_STRAND,
    "big hair": pa.HairType.BIG_HAIR,
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
    "short waves",
    "hair at the sides",
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
SHUT = "shut"  # no value of the attribute: what blinking makes of every other one for a moment
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
    "cheeky": pa.MouthType.TONGUE,
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


def hidden(drawn: dict[str, str]) -> set[str]:
    """The attributes that have a value and do not show: colours of what is not there, and eyes behind dark glasses.

    Hair at the sides is left out as well: at 32 x 32 pixels it colours at most 18 of them.
    """
    little = drawn["top"] in ("bald head", "hair at the sides")
    unseen = {"top_colour"} if little else set()
    if drawn["beard"] == "none" and (little or isinstance(TOPS[drawn["top"]], pa.HatType)):
        unseen.add("hair_colour")
    return unseen | ({"eyes"} if drawn["glasses"] == "sunglasses" else set())


# The groups of the drawing in the order in which they cover each other, and the attributes each depends on.
_LAYERS = (
    ("Body", ("skin",)),
    ("Clothing", ("clothes", "clothes_colour")),
    ("Face", ("eyes", "eyebrows", "mouth")),
    ("Top", ("beard", "hair_colour")),
    ("Top", ("top", "top_colour", "glasses")),
)


def png(drawn: dict[str, str], size: int) -> bytes:
    """The avatar as an RGB PNG of `size` x `size` pixels, antialiased."""
    image = Image.new("RGBA", (size, size), BACKGROUNDS[drawn["background"]])
    for layer in layers(drawn, size):
        image.alpha_composite(layer)
    out = io.BytesIO()
    image.convert("RGB").save(out, "PNG")
    return out.getvalue()


def layers(drawn: dict[str, str], size: int) -> list[Image.Image]:
    """What covers the background, in this order: RGBA pictures of `size` x `size` pixels, not to be changed."""
    return [_paint(group, tuple((key, drawn[key]) for key in keys), size) for group, keys in _LAYERS]


@functools.cache
def _paint(group: str, some: tuple[tuple[str, str], ...], size: int) -> Image.Image:
    text = _svg(group, dict(some))
    painted = resvg_py.svg_to_bytes(svg_string=text, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(painted)).convert("RGBA")


def _svg(group: str, some: dict[str, str]) -> str:
    """One group of python-avatars' drawing, transparent elsewhere, cut to a square around the head."""
    top: Any = TOPS[some.get("top", "bald head")]
    top_colours = CLOTH_COLOURS if top in list(pa.HatType) else HAIR_COLOURS
    top_colour: Any = top_colours[some.get("top_colour", "black")]
    drawing = ElementTree.fromstring(
        pa.Avatar(
            style=pa.AvatarStyle.TRANSPARENT,
            top=top,
            hair_color=top_colour,
            hat_color=top_colour,
            facial_hair=BEARDS[some.get("beard", "none")],
            facial_hair_color=HAIR_COLOURS[some.get("hair_colour", "brown")],
            skin_color=SKINS[some.get("skin", "light")],
            accessory=GLASSES[some.get("glasses", "none")],
            eyes=(EYES | {SHUT: pa.EyeType.CLOSED})[some.get("eyes", "open")],
            eyebrows=EYEBROWS[some.get("eyebrows", "curved")],
            mouth=MOUTHS[some.get("mouth", "smiling")],
            nose=pa.NoseType.DEFAULT,
            clothing=CLOTHES[some.get("clothes", "T-shirt")],
            clothing_color=CLOTH_COLOURS[some.get("clothes_colour", "white")],
        ).render()
    )
    if drawing.get("viewBox") != "0 0 264 280":
        raise RuntimeError("python-avatars' drawing is no longer 264 x 280: the cut must be revised")
    drawing.attrib |= {"viewBox": "20 14 224 224", "width": "224", "height": "224"}
    groups = next(child for child in drawing if child.tag.endswith("}g"))
    for child in list(groups):
        if not str(child.get("id")).endswith(f"_{group}"):
            groups.remove(child)
    return ElementTree.tostring(drawing, encoding="unicode")
