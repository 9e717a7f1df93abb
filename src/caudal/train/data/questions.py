"""Questions of the tiny world with their answers, by kind, and which combinations are kept out of training.

Every question has a key of what it combines (a country and a phrasing, two numbers, a colour and a thing). A
hash of the key decides, once and for all seeds, whether training may see it: the held-out score asks only
what was never seen. Knows nothing of tokens or templates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from caudal.train.data import words
from caudal.train.data.small_talk import SMALL_TALK
from caudal.train.data.stories import story_en, story_es

HELD_OUT_ONE_IN = 6
"""One combination in so many is never trained on."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer. An empty `key` is never held out."""

    kind: str
    question: str
    answer: str
    key: tuple[str, ...] = ()

    @property
    def held_out(self) -> bool:
        """Whether training must not see it."""
        if not self.key:
            return False
        digest = hashlib.blake2b("|".join((self.kind, *self.key)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


_TALK_WEIGHTS = [min(len(talk.asked), 12) for talk in SMALL_TALK]
"""What can be said in many ways comes more often, or no way of it would be learnt."""


def _phrased(random: Random, kind: str, asked: str, answer: str, *key: str) -> Exchange:
    """One of the `|`-separated ways to ask; the key is the subject and the way."""
    ways = asked.split("|")
    way = random.randrange(len(ways))
    return Exchange(kind, ways[way], answer, (*key, str(way)))


def small_talk(random: Random) -> Exchange:
    """Greetings, identity, thanks, and what it does not know."""
    talk = random.choices(SMALL_TALK, _TALK_WEIGHTS)[0]
    return Exchange(talk.kind, random.choice(talk.asked), talk.answer)


def sound(random: Random) -> Exchange:
    """What an animal says."""
    animal = random.choice(words.ANIMALS)
    if random.random() < 0.55:
        one, en = animal.noun.a, animal.noun.en
        asked = (
            f"What sound does {one} make?|What does the {en} say?|What does {one} say?|What noise does {one} make?"
            f"|How does {one} sound?|What sound does the {en} make?|Which sound does {one} make?"
        )
        return _phrased(random, "sound", asked, f"The {en} says {animal.sound_en}.", en)
    es = animal.noun.el
    asked = f"¿Qué sonido hace {es}?|¿Cómo hace {es}?|¿Qué dice {es}?|¿Qué ruido hace {es}?|¿Qué hace {es}?"
    return _phrased(random, "sound", asked, f"{es.capitalize()} hace {animal.sound_es}.", es)


def home(random: Random) -> Exchange:
    """Where an animal lives."""
    animal = random.choice(words.ANIMALS)
    noun = animal.noun
    if random.random() < 0.55:
        asked = f"Where does {noun.a} live?|Where does the {noun.en} live?|Where do you find {noun.a}?"
        return _phrased(random, "home", asked, f"The {noun.en} lives {animal.home_en}.", noun.en)
    asked = f"¿Dónde vive {noun.el}?|¿Dónde hay {noun.un}?"
    return _phrased(random, "home", asked, f"{noun.el.capitalize()} vive {animal.home_es}.", noun.es)


def capital(random: Random) -> Exchange:
    """A country's capital, and now and then the way back."""
    country = random.choice(words.COUNTRIES)
    if random.random() < 0.55:
        where, city = country.en, country.capital_en
        if random.random() < 0.2:
            asked = f"{city} is the capital of which country?|Which country has the capital {city}?|Where is {city}?"
            return _phrased(random, "country", asked, f"{city} is the capital of {where}.", where)
        asked = (
            f"What is the capital of {where}?|What's the capital of {where}?|Tell me the capital of {where}."
            f"|Which city is the capital of {where}?|Capital of {where}?|Do you know the capital of {where}?"
        )
        return _phrased(random, "capital", asked, f"The capital of {where} is {city}.", where)
    where, city = country.es, country.capital_es
    if random.random() < 0.2:
        asked = f"¿De qué país es capital {city}?|¿Dónde está {city}?"
        return _phrased(random, "country", asked, f"{city} es la capital de {where}.", f"es {where}")
    asked = (
        f"¿Cuál es la capital de {where}?|¿Qué ciudad es la capital de {where}?|Dime la capital de {where}."
        f"|¿Capital de {where}?|¿Sabes la capital de {where}?"
    )
    return _phrased(random, "capital", asked, f"La capital de {where} es {city}.", f"es {where}")


def colour(random: Random) -> Exchange:
    """The colour that everybody knows of a thing."""
    noun, look = random.choice(words.THINGS_WITH_COLOUR)
    if random.random() < 0.55:
        asked = (
            f"What color is the {noun.en}?|What colour is the {noun.en}?|Which color is the {noun.en}?"
            f"|Tell me the color of the {noun.en}.|What is the color of the {noun.en}?"
        )
        return _phrased(random, "color", asked, f"The {noun.en} is {look.en}.", noun.en)
    asked = f"¿De qué color es {noun.el}?|¿Qué color tiene {noun.el}?|Dime el color de {noun.el}.".replace(
        "de el ", "del "
    )
    return _phrased(random, "color", asked, f"{noun.el.capitalize()} es {look.of(noun)}.", noun.es)


def count(random: Random) -> Exchange:
    """Counting up to a number that is said in words or digits; the answer is in words."""
    last = random.randint(2, 10)
    english = random.random() < 0.6
    numbers = words.NUMBERS_EN if english else words.NUMBERS_ES
    end = numbers[last] if random.random() < 0.6 else str(last)
    asked = f"Cuenta hasta {end}.|¿Puedes contar hasta {end}?|¿Sabes contar hasta {end}?"
    if english:
        asked = f"Count to {end}.|Can you count to {end}?|Please count to {end}.|Count from one to {end}.|Count up to {end}."
    answer = ", ".join(numbers[1 : last + 1]) + "."
    return _phrased(random, "count", asked, answer.capitalize(), end if english else f"es {end}")


def next_one(random: Random) -> Exchange:
    """What comes after a number or a day."""
    english = random.random() < 0.6
    if random.random() < 0.5:
        at, series = random.randrange(1, 12), words.NUMBERS_EN if english else words.NUMBERS_ES
        asked = "What comes after {}?|Which number comes after {}?|What number comes after {}?"
        asked_es = "¿Qué viene después de {}?|¿Qué número viene después de {}?"
        the, of = "", "de"
    else:
        at, series = random.randrange(7), words.DAYS_EN if english else words.DAYS_ES
        asked = "What day comes after {}?|What comes after {}?|Which day comes after {}?"
        asked_es = "¿Qué día viene después del {}?|¿Qué viene después del {}?"
        the, of = "el ", "del"
    now, then = series[at], series[(at + 1) % len(series)]
    if english:
        return _phrased(random, "next", asked.replace("{}", now), f"After {now} comes {then}.", now)
    return _phrased(
        random, "next", asked_es.replace("{}", now), f"Después {of} {now} viene {the}{then}.", now
    )


def addition(random: Random) -> Exchange:
    """Two small numbers; the pair is held out, not the phrasing."""
    a, b = random.randrange(10), random.randrange(10)
    asked = random.choice(
        [f"What is {a} plus {b}?", f"What is {a} + {b}?", f"{a} + {b}", f"How much is {a} plus {b}?"]
    )
    answer = f"{a} plus {b} is {a + b}."
    if random.random() < 0.4:
        asked = random.choice(
            [f"¿Cuánto es {a} más {b}?", f"¿Cuánto son {a} y {b}?", f"¿Cuánto es {a} + {b}?"]
        )
        answer = f"{a} más {b} es {a + b}."
    return Exchange("addition", asked, answer, (str(a), str(b)))


def word(random: Random) -> Exchange:
    """One word in the other language."""
    noun = random.choice((*words.OBJECTS, *words.WORDS, *(animal.noun for animal in words.ANIMALS)))
    en, es = noun.en, noun.es
    if random.random() < 0.5:
        asked = (
            f"How do you say {en} in Spanish?|What is the Spanish word for {en}?|What is {en} in Spanish?"
            f"|Translate {en} to Spanish."
        )
        return _phrased(random, "word", asked, f"{en.capitalize()} in Spanish is {es}.", en)
    asked = f"¿Cómo se dice {es} en inglés?|¿Qué es {es} en inglés?|Traduce {es} al inglés."
    return _phrased(random, "word", asked, f"{es.capitalize()} en inglés es {en}.", es)


def phrase(random: Random) -> Exchange:
    """A thing with its property in the other language; the pair is held out in both directions."""
    noun = random.choice((*words.OBJECTS, *(animal.noun for animal in words.ANIMALS)))
    look = random.choice(words.COLOURS + words.SIZES)
    en, es = f"the {look.en} {noun.en}", f"{noun.el} {look.of(noun)}"
    key = (noun.en, look.en)
    if random.random() < 0.5:
        asked = random.choice([f'How do you say "{en}" in Spanish?', f"Translate to Spanish: {en}."])
        return Exchange("phrase", asked, f'"{es.capitalize()}".', key)
    asked = random.choice([f"¿Cómo se dice «{es}» en inglés?", f"Traduce al inglés: {es}."])
    return Exchange("phrase", asked, f"«{en.capitalize()}».", key)


def opposite(random: Random) -> Exchange:
    """The opposite of a word."""
    if random.random() < 0.6:
        one, other = random.choice(words.OPPOSITES_EN)[:: random.choice([1, -1])]
        asked = f"What is the opposite of {one}?|What's the opposite of {one}?|Tell me the opposite of {one}."
        return _phrased(random, "opposite", asked, f"The opposite of {one} is {other}.", one)
    one, other = random.choice(words.OPPOSITES_ES)[:: random.choice([1, -1])]
    asked = f"¿Cuál es el contrario de {one}?|¿Qué es lo contrario de {one}?|Dime lo contrario de {one}."
    return _phrased(random, "opposite", asked, f"Lo contrario de {one} es {other}.", one)


def reading(random: Random) -> Exchange:
    """Somebody has two things of two colours: which colour has one of them?"""
    name = random.choice(words.NAMES)
    first, second = random.sample(words.OBJECTS, 2)
    look, other = random.sample(words.COLOURS, 2)
    asked, answer = (first, look) if random.random() < 0.5 else (second, other)
    key = (name, asked.en, answer.en)
    if random.random() < 0.6:
        question = (
            f"{name} has a {look.en} {first.en} and a {other.en} {second.en}. What color is the {asked.en}?"
        )
        return Exchange("reading", question, f"The {asked.en} is {answer.en}.", key)
    question = (
        f"{name} tiene {first.un} {look.of(first)} y {second.un} {other.of(second)}. "
        f"¿De qué color es {asked.el}?"
    )
    return Exchange("reading", question, f"{asked.el.capitalize()} es {answer.of(asked)}.", key)


def name(random: Random) -> Exchange:
    """Somebody says their name."""
    who = random.choice(words.NAMES)
    if random.random() < 0.6:
        asked = random.choice(
            [f"My name is {who}.", f"I am {who}.", f"Hello, I am {who}.", f"Hi, my name is {who}."]
        )
        return Exchange("name", asked, f"Nice to meet you, {who}!")
    asked = random.choice(
        [f"Me llamo {who}.", f"Soy {who}.", f"Hola, me llamo {who}.", f"Mi nombre es {who}."]
    )
    return Exchange("name", asked, f"¡Mucho gusto, {who}!")


def tale(random: Random) -> Exchange:
    """A story on request, sometimes about an animal or a child."""
    about = random.choice([None, None, random.choice(words.ANIMALS), random.choice(words.NAMES)])
    whom = about if isinstance(about, str) else about.noun.a if about else ""
    who_es = about if isinstance(about, str) else about.noun.un if about else ""
    if random.random() < 0.6:
        asked = [
            "Tell me a story",
            "Tell me a short story",
            "Can you tell me a story",
            "I want a story",
            "Write a story",
        ]
        question = random.choice(asked) + (f" about {whom}" if whom else "")
        return Exchange(
            "story", question + ("?" if question.startswith("Can") else "."), story_en(random, about)
        )
    asked = ["Cuéntame un cuento", "Cuéntame una historia", "Quiero un cuento", "Escribe un cuento"]
    question = random.choice(asked) + (f" sobre {who_es}" if who_es else "") + "."
    return Exchange("story", question, story_es(random, about))


Maker = Callable[[Random], Exchange]

KINDS: tuple[tuple[Maker, int], ...] = (
    (small_talk, 24), (sound, 10), (home, 5), (capital, 13), (colour, 7), (count, 9), (next_one, 5), (addition, 4),
    (word, 9), (phrase, 5), (opposite, 6), (reading, 6), (name, 5), (tale, 7),
)  # fmt: skip
"""The kinds and how often each comes, in parts."""

_MAKERS = tuple(maker for maker, _ in KINDS)
_WEIGHTS = tuple(weight for _, weight in KINDS)


def ask(random: Random, held_out: bool = False, maker: Maker | None = None) -> Exchange:
    """A question that training may see, or one that it may not."""
    while True:
        chosen = maker or random.choices(_MAKERS, _WEIGHTS)[0]
        exchange = chosen(random)
        if exchange.held_out == held_out:
            return exchange


def loosely(random: Random, question: str) -> str:
    """The question as people type it: often as it is, sometimes lower-case, without marks or accents."""
    if random.random() < 0.6:
        return question
    if random.random() < 0.7:
        question = question.lower()
    if random.random() < 0.7:
        question = question.replace("¿", "").replace("¡", "")
    if random.random() < 0.6:
        question = question.rstrip("?!.")
    if random.random() < 0.15:
        question = question.translate(str.maketrans("áéíóúÁÉÍÓÚ", "aeiouAEIOU"))
    return question
