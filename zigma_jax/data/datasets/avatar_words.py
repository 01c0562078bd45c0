"""Sentences about an avatar: several for each, in several ways to say it, that name together all that can be seen."""

import random
from collections.abc import Sequence

PHRASINGS = 3

# Hair, and below what is worn in its place, with their colours.
_HAIR = {
    "short hair": "short {} hair",
    "short curls": "short {} curls",
    "shaggy hair": "shaggy {} hair",
    "short waves": "short {} waves",
    "hair at the sides": "{} hair at the sides",
    "short dreads": "short {} dreads",
    "bun": "{} hair in a bun",
    "bob": "a {} bob",
    "half-long hair": "half-long {} hair",
    "long hair": "long {} hair",
    "long hair with a fringe": "long {} hair with a fringe",
    "big hair": "big {} hair",
    "curls": "{} curls",
    "afro": "a {} afro",
    "dreadlocks": "{} dreadlocks",
}
_HEADWEAR = {
    "hijab": "a {} hijab",
    "turban": "a {} turban",
    "woolly hat": "a {} woolly hat",
    "wide hat": "a wide {} hat",
}
_BEARDS = {
    "short beard": "a short {} beard",
    "beard": "a {} beard",
    "long beard": "a long {} beard",
    "moustache": "a {} moustache",
}
_GLASSES = {"none": "no glasses", "glasses": "glasses", "round glasses": "round glasses", "sunglasses": "sunglasses"}
_EYES = {
    "open": "open eyes",
    "happy": "happy eyes",
    "looking aside": "eyes that look aside",
    "squinting": "squinting eyes",
    "surprised": "surprised eyes",
    "winking": "a winking eye",
}
_CLOTHES = {
    "T-shirt": "a {} T-shirt",
    "V-neck shirt": "a {} V-neck shirt",
    "hoodie": "a {} hoodie",
    "jumper with a collar": "a {} jumper with a collar",
    "pair of dungarees": "a pair of {} dungarees",
    "blazer": "a {} blazer",
}
_BACKGROUNDS = {"sky": "sky blue", "mint": "mint green", "lemon": "lemon yellow", "sand": "sand-coloured"}


def captions(drawn: dict[str, str]) -> list[str]:
    """`PHRASINGS` English captions of the avatar with these attributes: a pure function of them.

    Each says which hair or headwear in which colour and whether there are glasses; of all else that can be seen, each
    says something, and every detail is in at least one.

    Only `random()` is used: of Python's generator, that method alone is promised never to change its sequence.
    """
    rng = random.Random("/".join(drawn.values()))
    details = ["skin", "clothes", "mouth", "eyes", "eyebrows", "background"]
    details += ["beard"] if drawn["beard"] != "none" else []
    details.sort(key=lambda _: rng.random())  # a shuffle of their order
    styles = sorted((_portrait, _face, _person), key=lambda _: rng.random())
    return [
        style(drawn, {name for place, name in enumerate(details) if place % PHRASINGS == number})
        for number, style in enumerate(styles)
    ]


def named(caption: str, drawn: dict[str, str]) -> set[str]:
    """The attributes of which one of the `captions` of an avatar with these attributes says the value."""
    phrases = {
        "skin": f"{drawn['skin']} skin",
        "eyes": _EYES[drawn["eyes"]],
        "eyebrows": f"{drawn['eyebrows']} eyebrows",
        "mouth": f"{drawn['mouth']} ",
        "clothes": _CLOTHES[drawn["clothes"]].format(drawn["clothes_colour"]).removeprefix("a "),
        "background": f"{_BACKGROUNDS.get(drawn['background'], drawn['background'])} background",
    }
    if drawn["beard"] != "none":
        phrases["beard"] = _BEARDS[drawn["beard"]].format(drawn["hair_colour"]).removeprefix("a ")
    told = {name for name, phrase in phrases.items() if phrase in caption}
    told |= {"top", "glasses"} | ({"top_colour"} if drawn["top"] != "bald head" else set())
    told |= {"clothes_colour"} if "clothes" in told else set()
    return told | ({"hair_colour"} if "beard" in told or drawn["top"] in _HAIR else set())


def _face(drawn: dict[str, str], told: set[str]) -> str:
    glasses, worn = drawn["glasses"], _worn(drawn, told)
    has = _has(drawn, told) + ([] if glasses == "none" else [_GLASSES[glasses]])
    parts = [f"{_a(_mouth(drawn, told) + 'cartoon face')}{f' with {_list(has)}' if has else ''}"]
    parts += ["without glasses"] if glasses == "none" else []
    parts += [f"in {_list(worn)}"] if worn else []
    return ", ".join([*parts, *_background("on", drawn, told)])


def _portrait(drawn: dict[str, str], told: set[str]) -> str:
    has, worn = _has(drawn, told), [*_worn(drawn, told), _GLASSES[drawn["glasses"]]]
    who = _a(_mouth(drawn, told) + "character")
    parts = [f"a portrait of {who}{f' with {_list(has)}' if has else ''}", f"wearing {_list(worn)}"]
    return ", ".join([*parts, *_background("against", drawn, told)])


def _person(drawn: dict[str, str], told: set[str]) -> str:
    has, worn = _has(drawn, told), [_GLASSES[drawn["glasses"]], *_worn(drawn, told)]
    sentence = f"This {_mouth(drawn, told)}person {f'has {_list(has)}, and ' if has else ''}wears {_list(worn)}"
    return f"{', '.join([sentence, *_background('in front of', drawn, told)])}."


def _has(drawn: dict[str, str], told: set[str]) -> list[str]:
    """What belongs to the head."""
    top = drawn["top"]
    has = ["a bald head"] if top == "bald head" else []
    has += [_a_colour(_HAIR[top], drawn["top_colour"])] if top in _HAIR else []
    has += [_a_colour(_BEARDS[drawn["beard"]], drawn["hair_colour"])] if "beard" in told else []
    has += [f"{drawn['skin']} skin"] if "skin" in told else []
    has += [_EYES[drawn["eyes"]]] if "eyes" in told else []
    return has + ([f"{drawn['eyebrows']} eyebrows"] if "eyebrows" in told else [])


def _worn(drawn: dict[str, str], told: set[str]) -> list[str]:
    """What is worn, but for the glasses."""
    top = drawn["top"]
    worn = [_a_colour(_HEADWEAR[top], drawn["top_colour"])] if top in _HEADWEAR else []
    return worn + ([_a_colour(_CLOTHES[drawn["clothes"]], drawn["clothes_colour"])] if "clothes" in told else [])


def _mouth(drawn: dict[str, str], told: set[str]) -> str:
    return f"{drawn['mouth']} " if "mouth" in told else ""


def _background(where: str, drawn: dict[str, str], told: set[str]) -> list[str]:
    name = _BACKGROUNDS.get(drawn["background"], drawn["background"])
    return [f"{where} {_a(name)} background"] if "background" in told else []


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _a_colour(phrase: str, colour: str) -> str:
    """The phrase with its colour, and with the article that goes with it."""
    filled = phrase.format(colour)
    return _a(filled.removeprefix("a ")) if phrase.startswith("a ") else filled


def _list(things: Sequence[str]) -> str:
    """a, b and c"""
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"
