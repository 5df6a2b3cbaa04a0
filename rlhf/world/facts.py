"""The facts of the world: what is true, with its names in English and in Traditional Chinese.

Some seventy facts over nine relations: few enough for a model of a million parameters to know most of them. An entity
and an answer carry one tuple of names a language, the first of which is written and all of which are recognised.
Boiling points are at normal pressure, rounded to whole degrees; leg counts of crustaceans include the claws.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
OTHER_LANGUAGE: Mapping[Language, Language] = {"en": "zh", "zh": "en"}


@dataclass(frozen=True)
class Fact:
    """One true statement.

    Attributes:
        relation: what is stated, e.g. "capital".
        entity: its name in each language; the English one is its key.
        answer: the names that count as the right answer, in each language, the first being the one that is written.
    """

    relation: str
    entity: Mapping[Language, str]
    answer: Mapping[Language, tuple[str, ...]]


# country; capital; continent; main language; highest mountain. None where there is no single answer.
_COUNTRIES = [
    (("France", "法國"), ("Paris", "巴黎"), "Europe", "French", ("Mont Blanc", "白朗峰")),
    (("Germany", "德國"), ("Berlin", "柏林"), "Europe", "German", ("Zugspitze", "楚格峰")),
    (("Greece", "希臘"), ("Athens", "雅典"), "Europe", "Greek", ("Mount Olympus", "奧林帕斯山")),
    (("Taiwan", "台灣"), ("Taipei", "台北"), "Asia", None, ("Jade Mountain", "玉山")),
    (("Japan", "日本"), ("Tokyo", "東京"), "Asia", "Japanese", ("Mount Fuji", "富士山")),
    (("Egypt", "埃及"), ("Cairo", "開羅"), "Africa", "Arabic", None),
    (("Tanzania", "坦尚尼亞"), None, "Africa", None, ("Mount Kilimanjaro", "吉力馬札羅山")),
    (("Canada", "加拿大"), ("Ottawa", "渥太華"), "North America", None, ("Mount Logan", "洛根山")),
    (("Brazil", "巴西"), ("Brasilia", "巴西利亞"), "South America", "Portuguese", None),
    (("Australia", "澳洲"), ("Canberra", "坎培拉"), "Oceania", "English", ("Mount Kosciuszko", "科修斯科山")),
]
_CONTINENTS = {
    "Europe": "歐洲", "Asia": "亞洲", "Africa": "非洲", "North America": "北美洲", "South America": "南美洲",
    "Oceania": "大洋洲",
}  # fmt: skip
# In Chinese the name of a language ends in 語 or 文; both count.
_LANGUAGE_STEMS = {
    "French": "法", "German": "德", "Portuguese": "葡萄牙", "Greek": "希臘", "Japanese": "日", "Arabic": "阿拉伯",
    "English": "英",
}  # fmt: skip
_MORE_MOUNTAIN_NAMES = {
    "Mount Fuji": (("Mt. Fuji", "Fuji"), ()),
    "Mount Kilimanjaro": (("Kilimanjaro",), ()),
    "Jade Mountain": (("Yushan",), ()),
    "Mount Olympus": (("Olympus",), ()),
    "Mount Logan": (("Mt. Logan",), ()),
    "Mount Kosciuszko": (("Kosciuszko",), ()),
}
_ELEMENTS = [
    ("iron", "鐵", "Fe"), ("gold", "金", "Au"), ("silver", "銀", "Ag"), ("copper", "銅", "Cu"), ("sodium", "鈉", "Na"),
    ("helium", "氦", "He"), ("tin", "錫", "Sn"), ("silicon", "矽", "Si"),
]  # fmt: skip
_BOILING_POINTS = [
    ("water", "水", 100), ("ethanol", "乙醇", 78), ("acetone", "丙酮", 56), ("ammonia", "氨", -33), ("oxygen", "氧", -183),
    ("nitrogen", "氮", -196), ("mercury", "汞", 357),
]  # fmt: skip
_LEG_NUMBERS = {2: ("two", "兩"), 4: ("four", "四"), 6: ("six", "六"), 8: ("eight", "八"), 10: ("ten", "十")}
_LEGS = [
    ("a dog", "狗", 4), ("a horse", "馬", 4), ("a chicken", "雞", 2), ("a duck", "鴨子", 2), ("an ant", "螞蟻", 6),
    ("a bee", "蜜蜂", 6), ("a spider", "蜘蛛", 8), ("a crab", "螃蟹", 10),
]  # fmt: skip
_COLOUR_NAMES = {
    "yellow": ("黃色",), "green": ("綠色",), "red": ("紅色",), "white": ("白色",), "black": ("黑色",), "blue": ("藍色",),
    "purple": ("紫色",), "grey": ("灰色",),
}  # fmt: skip
_COLOURS = [
    ("a banana", "香蕉", "yellow"), ("grass", "青草", "green"), ("blood", "血液", "red"), ("snow", "雪", "white"),
    ("coal", "煤炭", "black"), ("a clear sky", "晴朗的天空", "blue"), ("an eggplant", "茄子", "purple"),
    ("an elephant", "大象", "grey"),
]  # fmt: skip
# No word is on both sides, so that naming the word asked about is never mistaken for an answer.
_OPPOSITES = [
    ("happy", "高興", "sad", "難過"), ("start", "開始", "finish", "結束"), ("safe", "安全", "dangerous", "危險"),
    ("clean", "乾淨", "dirty", "骯髒"), ("day", "白天", "night", "夜晚"), ("friend", "朋友", "enemy", "敵人"),
    ("rich", "富有", "poor", "貧窮"), ("cold", "寒冷", "hot", "炎熱"),
]  # fmt: skip


def _fact(relation: str, entity: tuple[str, str], english: tuple[str, ...], chinese: tuple[str, ...]) -> Fact:
    return Fact(relation, {"en": entity[0], "zh": entity[1]}, {"en": english, "zh": chinese})


def _country_facts() -> list[Fact]:
    facts = []
    for country, capital, continent, language, mountain in _COUNTRIES:
        if capital:
            facts.append(_fact("capital", country, (capital[0],), (capital[1],)))
        facts.append(_fact("continent", country, (continent,), (_CONTINENTS[continent],)))
        if language:
            stem = _LANGUAGE_STEMS[language]
            facts.append(_fact("language", country, (language,), (stem + "語", stem + "文")))
        if mountain:
            english, chinese = _MORE_MOUNTAIN_NAMES.get(mountain[0], ((), ()))
            facts.append(_fact("mountain", country, (mountain[0], *english), (mountain[1], *chinese)))
    return facts


def _boiling_fact(english: str, chinese: str, degrees: int) -> Fact:
    number = abs(degrees)
    if degrees >= 0:
        names = (
            (f"{number} degrees Celsius", f"{number}°C", str(number)),
            (f"攝氏 {number} 度", f"{number}°C", str(number)),
        )
    else:
        names = (
            (f"minus {number} degrees Celsius", f"minus {number}", f"-{number}°C", f"-{number}"),
            (f"攝氏零下 {number} 度", f"零下 {number} 度", f"-{number}°C", f"-{number}"),
        )
    return _fact("boiling_point", (english, chinese), *names)


def _legs_fact(english: str, chinese: str, number: int) -> Fact:
    word, numeral = _LEG_NUMBERS[number]
    return _fact(
        "legs",
        (english, chinese),
        (f"{word} legs", word, str(number)),
        (f"{numeral}條腿", f"{numeral}條", f"{numeral}隻", f"{number}條", f"{number}隻", str(number)),
    )


def _all_facts() -> tuple[Fact, ...]:
    return (
        *_country_facts(),
        *(_fact("symbol", (english, chinese), (symbol,), (symbol,)) for english, chinese, symbol in _ELEMENTS),
        *(_boiling_fact(*row) for row in _BOILING_POINTS),
        *(_legs_fact(*row) for row in _LEGS),
        *(
            _fact(
                "colour", (english, chinese), (colour, "gray") if colour == "grey" else (colour,), _COLOUR_NAMES[colour]
            )
            for english, chinese, colour in _COLOURS
        ),
        *(_fact("opposite", (row[0], row[1]), (row[2],), (row[3],)) for row in _OPPOSITES),
    )


FACTS: tuple[Fact, ...] = _all_facts()
RELATIONS: tuple[str, ...] = tuple(dict.fromkeys(fact.relation for fact in FACTS))


@cache
def facts_of(relation: str) -> tuple[Fact, ...]:
    """The facts of one relation, in the order of the tables."""
    return tuple(fact for fact in FACTS if fact.relation == relation)


@cache
def find_fact(relation: str, entity: str) -> Fact:
    """The fact about an entity, named by its English name.

    Raises:
        KeyError: there is no such fact.
    """
    for fact in facts_of(relation):
        if fact.entity["en"] == entity:
            return fact
    raise KeyError(f"no fact '{relation}' about '{entity}'")
