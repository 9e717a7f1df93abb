"""The words of the tiny world: what there is, in English and Spanish. Our own lists, CC0."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Noun:
    """A thing in both languages; `feminine` is the Spanish word's gender."""

    en: str
    es: str
    feminine: bool = False

    @property
    def a(self) -> str:
        """With the English indefinite article."""
        return with_article(self.en)

    @property
    def el(self) -> str:
        """With the Spanish definite article."""
        return ("la " if self.feminine else "el ") + self.es

    @property
    def un(self) -> str:
        """With the Spanish indefinite article."""
        return ("una " if self.feminine else "un ") + self.es


@dataclass(frozen=True, slots=True)
class Quality:
    """A colour or another property, with both Spanish genders."""

    en: str
    masculine: str
    feminine: str

    def of(self, noun: Noun) -> str:
        """The Spanish form that agrees with the noun."""
        return self.feminine if noun.feminine else self.masculine


@dataclass(frozen=True, slots=True)
class Animal:
    """An animal, what it says, and where it lives."""

    noun: Noun
    sound_en: str
    sound_es: str
    home_en: str
    home_es: str


@dataclass(frozen=True, slots=True)
class Country:
    """A country and its capital."""

    en: str
    capital_en: str
    es: str
    capital_es: str


def with_article(word: str) -> str:
    """`a ball`, `an owl`."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def _nouns(text: str) -> tuple[Noun, ...]:
    """`ball pelota f, hat sombrero m` as nouns."""
    rows = (row.split() for row in text.split(","))
    return tuple(Noun(en, es, gender == "f") for en, es, gender in rows)


GIRLS = ("Lily", "Mia", "Anna", "Zoe", "Lucy", "Sara", "Rosa", "Nora", "Emma", "Clara", "Elena", "Julia")
BOYS = ("Tom", "Ben", "Sam", "Max", "Leo", "Jack", "Tim", "Pablo", "David", "Carlos", "Peter", "Daniel")
NAMES = GIRLS + BOYS

OBJECTS = _nouns(
    "ball pelota f, hat sombrero m, book libro m, kite cometa f, boat barco m, cup taza f, box caja f,"
    "flower flor f, key llave f, car coche m, apple manzana f, bell campana f, shoe zapato m, drum tambor m,"
    "lamp lámpara f, chair silla f"
)

WORDS = _nouns(
    "house casa f, tree árbol m, sun sol m, moon luna f, water agua f, bread pan m, milk leche f, table mesa f,"
    "door puerta f, friend amigo m, mother madre f, father padre m, star estrella f, river río m, hand mano f"
)

COLOURS = (
    Quality("red", "rojo", "roja"),
    Quality("blue", "azul", "azul"),
    Quality("green", "verde", "verde"),
    Quality("yellow", "amarillo", "amarilla"),
    Quality("white", "blanco", "blanca"),
    Quality("black", "negro", "negra"),
    Quality("pink", "rosa", "rosa"),
)

SIZES = (
    Quality("small", "pequeño", "pequeña"),
    Quality("big", "grande", "grande"),
    Quality("new", "nuevo", "nueva"),
    Quality("old", "viejo", "vieja"),
)

_FARM, _FOREST, _HOUSE = (
    ("on a farm", "en una granja"),
    ("in the forest", "en el bosque"),
    ("in a house", "en una casa"),
)

ANIMALS = (
    Animal(Noun("cat", "gato"), "meow", "miau", *_HOUSE),
    Animal(Noun("dog", "perro"), "woof", "guau", *_HOUSE),
    Animal(Noun("cow", "vaca", True), "moo", "muu", *_FARM),
    Animal(Noun("duck", "pato"), "quack", "cuac", "on a lake", "en un lago"),
    Animal(Noun("sheep", "oveja", True), "baa", "bee", *_FARM),
    Animal(Noun("horse", "caballo"), "neigh", "hiii", *_FARM),
    Animal(Noun("frog", "rana", True), "ribbit", "croac", "near the water", "cerca del agua"),
    Animal(Noun("bird", "pájaro"), "tweet", "pío", "in a nest", "en un nido"),
    Animal(Noun("pig", "cerdo"), "oink", "oinc", *_FARM),
    Animal(Noun("lion", "león"), "roar", "grrr", "in Africa", "en África"),
    Animal(Noun("bee", "abeja", True), "buzz", "zzz", "in a hive", "en una colmena"),
    Animal(Noun("owl", "búho"), "hoot", "uu", *_FOREST),
    Animal(Noun("wolf", "lobo"), "howl", "auuu", *_FOREST),
    Animal(Noun("mouse", "ratón"), "squeak", "iii", "in a hole", "en un agujero"),
)

COUNTRIES = (
    Country("France", "Paris", "Francia", "París"),
    Country("Spain", "Madrid", "España", "Madrid"),
    Country("Italy", "Rome", "Italia", "Roma"),
    Country("Germany", "Berlin", "Alemania", "Berlín"),
    Country("Portugal", "Lisbon", "Portugal", "Lisboa"),
    Country("England", "London", "Inglaterra", "Londres"),
    Country("Greece", "Athens", "Grecia", "Atenas"),
    Country("Norway", "Oslo", "Noruega", "Oslo"),
    Country("Russia", "Moscow", "Rusia", "Moscú"),
    Country("Egypt", "Cairo", "Egipto", "El Cairo"),
    Country("Japan", "Tokyo", "Japón", "Tokio"),
    Country("China", "Beijing", "China", "Pekín"),
    Country("Canada", "Ottawa", "Canadá", "Ottawa"),
    Country("Mexico", "Mexico City", "México", "Ciudad de México"),
    Country("Cuba", "Havana", "Cuba", "La Habana"),
    Country("Peru", "Lima", "Perú", "Lima"),
    Country("Chile", "Santiago", "Chile", "Santiago"),
    Country("Argentina", "Buenos Aires", "Argentina", "Buenos Aires"),
)

THINGS_WITH_COLOUR = (
    (Noun("sky", "cielo"), COLOURS[1]),
    (Noun("sea", "mar"), COLOURS[1]),
    (Noun("grass", "hierba", True), COLOURS[2]),
    (Noun("frog", "rana", True), COLOURS[2]),
    (Noun("sun", "sol"), COLOURS[3]),
    (Noun("lemon", "limón"), COLOURS[3]),
    (Noun("banana", "plátano"), COLOURS[3]),
    (Noun("snow", "nieve", True), COLOURS[4]),
    (Noun("milk", "leche", True), COLOURS[4]),
    (Noun("night", "noche", True), COLOURS[5]),
    (Noun("tomato", "tomate"), COLOURS[0]),
    (Noun("strawberry", "fresa", True), COLOURS[0]),
    (Noun("pig", "cerdo"), COLOURS[6]),
)

OPPOSITES_EN = (
    ("big", "small"), ("hot", "cold"), ("happy", "sad"), ("day", "night"), ("good", "bad"), ("old", "new"),
    ("fast", "slow"), ("open", "closed"), ("black", "white"), ("full", "empty"), ("wet", "dry"), ("up", "down"),
)  # fmt: skip

OPPOSITES_ES = (
    ("grande", "pequeño"), ("caliente", "frío"), ("feliz", "triste"), ("día", "noche"), ("bueno", "malo"),
    ("viejo", "nuevo"), ("rápido", "lento"), ("abierto", "cerrado"), ("negro", "blanco"), ("lleno", "vacío"),
)  # fmt: skip

DAYS_EN = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAYS_ES = ("lunes", "martes", "miércoles", "jueves", "viernes", "sábado", "domingo")

NUMBERS_EN = tuple("zero one two three four five six seven eight nine ten eleven twelve".split())  # noqa: SIM905
NUMBERS_ES = tuple("cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce".split())  # noqa: SIM905

PLACES = (
    Noun("park", "parque"), Noun("garden", "jardín"), Noun("river", "río"), Noun("forest", "bosque"),
    Noun("beach", "playa", True), Noun("farm", "granja", True), Noun("hill", "colina", True),
    Noun("school", "escuela", True), Noun("lake", "lago"), Noun("market", "mercado"),
)  # fmt: skip

HIDING = (
    ("under a tree", "debajo de un árbol"), ("behind a rock", "detrás de una roca"),
    ("in the tall grass", "entre la hierba alta"), ("near the water", "cerca del agua"),
    ("on top of a wall", "encima de un muro"), ("inside a basket", "dentro de una cesta"),
)  # fmt: skip

WEATHER = (("sunny", "de sol"), ("rainy", "de lluvia"), ("windy", "de viento"), ("cold", "de frío"))
