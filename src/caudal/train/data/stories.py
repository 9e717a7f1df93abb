"""Small stories of the tiny world, in English and Spanish, four plots in each.

`about` puts a given animal or name into the story, for people who ask for one. Knows nothing of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from caudal.train.data.words import (
    ANIMALS,
    COLOURS,
    GIRLS,
    HIDING,
    NAMES,
    OBJECTS,
    PLACES,
    SIZES,
    WEATHER,
    Animal,
    Noun,
    Quality,
    with_article,
)


@dataclass(frozen=True, slots=True)
class Cast:
    """Who and what a story is about."""

    hero: str
    friend: str
    animal: Animal
    thing: Noun
    look: Quality
    place: Noun
    hidden: tuple[str, str]
    weather: tuple[str, str]

    @property
    def girl(self) -> bool:
        """Whether the hero is one: chooses the pronouns."""
        return self.hero in GIRLS


def cast(random: Random, about: Animal | str | None = None) -> Cast:
    """A cast by chance, with the given animal or hero in it."""
    hero = about if isinstance(about, str) else random.choice(NAMES)
    return Cast(
        hero=hero,
        friend=random.choice([name for name in NAMES if name != hero]),
        animal=about if isinstance(about, Animal) else random.choice(ANIMALS),
        thing=random.choice(OBJECTS),
        look=random.choice(COLOURS + SIZES),
        place=random.choice(PLACES),
        hidden=random.choice(HIDING),
        weather=random.choice(WEATHER),
    )


def story_en(random: Random, about: Animal | str | None = None) -> str:
    """A story in English."""
    who = cast(random, about)
    plots = (
        [_lost_en, _rescue_en] if isinstance(about, Animal) else [_lost_en, _rescue_en, _share_en, _gift_en]
    )
    lines = [_opening_en(random, who), *random.choice(plots)(random, who), _ending_en(random, who)]
    return " ".join(lines)


def story_es(random: Random, about: Animal | str | None = None) -> str:
    """A story in Spanish."""
    who = cast(random, about)
    plots = (
        [_lost_es, _rescue_es] if isinstance(about, Animal) else [_lost_es, _rescue_es, _share_es, _gift_es]
    )
    lines = [_opening_es(random, who), *random.choice(plots)(random, who), _ending_es(random, who)]
    return " ".join(lines)


def _opening_en(random: Random, who: Cast) -> str:
    child = "girl" if who.girl else "boy"
    return random.choice(
        [
            f"Once upon a time, there was a {child} named {who.hero}.",
            f"One day, {who.hero} went to the {who.place.en}.",
            f"It was a {who.weather[0]} day and {who.hero} wanted to play.",
            f"{who.hero} lived in a little house near the {who.place.en}.",
        ]
    )


def _has_en(who: Cast) -> str:
    return f"{who.hero} had {with_article(who.look.en)} {who.thing.en}."


def _lost_en(random: Random, who: Cast) -> list[str]:
    she, her = ("she", "her") if who.girl else ("he", "his")
    animal = who.animal.noun
    return [
        _has_en(who),
        random.choice(
            [f"But one day the {who.thing.en} was gone.", f"Then the wind took the {who.thing.en} away."]
        ),
        random.choice(
            [
                f"{who.hero} looked and looked, but {she} could not find it.",
                f"{who.hero} was very sad and began to cry.",
            ]
        ),
        f'{animal.a.capitalize()} came and asked, "Why are you sad?"',
        f'"I lost my {who.look.en} {who.thing.en}," said {who.hero}.',
        f'"I can help you," said the {animal.en}.',
        f"They found {her} {who.thing.en} {who.hidden[0]}.",
        f'"Thank you!" said {who.hero}.',
    ]


def _rescue_en(random: Random, who: Cast) -> list[str]:
    animal = who.animal.noun
    trouble = random.choice(["cold", "hungry", "lost", "tired"])
    return [
        f"At the {who.place.en}, {who.hero} met a little {animal.en}.",
        f"The {animal.en} was {trouble} and all alone.",
        f'"Do not worry," said {who.hero}. "I will help you."',
        random.choice(
            [
                f"{who.hero} gave the {animal.en} some food and water.",
                f"{who.hero} took the {animal.en} back to its mother.",
            ]
        ),
        f'"{who.animal.sound_en.capitalize()}!" said the {animal.en}.',
        f"The {animal.en} was very happy.",
    ]


def _share_en(random: Random, who: Cast) -> list[str]:
    return [
        _has_en(who),
        f"{who.friend} came to the {who.place.en} too.",
        f'"Can I play with your {who.thing.en}?" asked {who.friend}.',
        random.choice(
            [f"At first {who.hero} did not want to share.", f"{who.hero} thought about it for a moment."]
        ),
        f'Then {who.hero} smiled and said, "Yes, we can play together."',
        f"{who.hero} and {who.friend} played with the {who.look.en} {who.thing.en} all day.",
    ]


def _gift_en(random: Random, who: Cast) -> list[str]:
    return [
        f"It was {who.friend}'s birthday.",
        f"{who.hero} had {with_article(who.look.en)} {who.thing.en} for {who.friend}.",
        f"{who.hero} put it in a big bag and walked to the {who.place.en}.",
        f'"Happy birthday, {who.friend}!" said {who.hero}.',
        f"{who.friend} opened the bag and saw the {who.look.en} {who.thing.en}.",
        random.choice(
            [f'"I love it! Thank you, {who.hero}!"', f'"What a nice {who.thing.en}!" said {who.friend}.']
        ),
    ]


def _ending_en(random: Random, who: Cast) -> str:
    return random.choice(
        [
            f"{who.hero} was happy and went home.",
            "They became best friends.",
            "They all laughed and were happy.",
            f"That night, {who.hero} slept very well.",
            "And they lived happily ever after.",
        ]
    )


def _to(place: Noun) -> str:
    """Spanish `to the place`: a + el is al."""
    return f"a {place.el}" if place.feminine else f"al {place.es}"


def _opening_es(random: Random, who: Cast) -> str:
    child = "una niña" if who.girl else "un niño"
    return random.choice(
        [
            f"Había una vez {child} que se llamaba {who.hero}.",
            f"Un día, {who.hero} fue {_to(who.place)}.",
            f"Era un día {who.weather[1]} y {who.hero} quería jugar.",
            f"{who.hero} vivía en una casa pequeña.",
        ]
    )


def _has_es(who: Cast) -> str:
    return f"{who.hero} tenía {who.thing.un} {who.look.of(who.thing)}."


def _lost_es(random: Random, who: Cast) -> list[str]:
    animal = who.animal.noun
    it = "la" if who.thing.feminine else "lo"
    return [
        _has_es(who),
        random.choice(
            [f"Pero un día {who.thing.el} no estaba.", f"Entonces el viento se llevó {who.thing.el}."]
        ),
        random.choice(
            [f"{who.hero} buscó por todas partes.", f"{who.hero} se puso triste y empezó a llorar."]
        ),
        f"{animal.un.capitalize()} preguntó: «¿Por qué lloras?»",
        f"«No encuentro mi {who.thing.es}», dijo {who.hero}.",
        f"«Yo te ayudo», dijo {animal.el}.",
        f"Juntos {it} encontraron {who.hidden[1]}.",
        f"«¡Muchas gracias!», dijo {who.hero}.",
    ]


def _rescue_es(random: Random, who: Cast) -> list[str]:
    animal = who.animal.noun
    ending = "a" if animal.feminine else "o"
    return [
        f"Allí vio {animal.un} que tenía {random.choice(['frío', 'hambre', 'miedo', 'sed'])}.",
        f"«No te preocupes», dijo {who.hero}. «Yo te ayudo».",
        random.choice(
            [f"{who.hero} le dio agua y comida.", f"{who.hero} llevó a {animal.el} con su madre."]
        ).replace(" a el ", " al "),
        f"«¡{who.animal.sound_es.capitalize()}!», dijo {animal.el}.",
        f"{animal.el.capitalize()} estaba muy content{ending}.",
    ]


def _share_es(random: Random, who: Cast) -> list[str]:
    return [
        _has_es(who),
        f"Allí estaba {who.friend}.",
        f"«¿Puedo jugar con tu {who.thing.es}?», preguntó {who.friend}.",
        random.choice(
            [f"{who.hero} sonrió y dijo: «Sí, vamos a jugar».", f"«¡Claro que sí!», dijo {who.hero}."]
        ),
        "Jugaron juntos todo el día.",
    ]


def _gift_es(random: Random, who: Cast) -> list[str]:
    return [
        f"Era el cumpleaños de {who.friend}.",
        f"{who.hero} le llevó {who.thing.un} {who.look.of(who.thing)}.",
        f"«¡Feliz cumpleaños, {who.friend}!», dijo {who.hero}.",
        random.choice(
            [f"«¡Me gusta mucho! Gracias, {who.hero}», dijo {who.friend}.", f"{who.friend} estaba muy feliz."]
        ),
    ]


def _ending_es(random: Random, who: Cast) -> str:
    return random.choice(
        [
            "Y fueron muy felices.",
            "Desde ese día son buenos amigos.",
            "Al final, todos volvieron a casa.",
            f"Esa noche, {who.hero} durmió muy bien.",
        ]
    )
