"""The facts of the world: what is true, with its names in English and in Traditional Chinese.

About a hundred and fifty facts over nine relations. An entity and an answer carry one tuple of names a language, the first of
which is written and all of which are recognised. Boiling points are at normal pressure, rounded to whole degrees; leg counts of
crustaceans include the claws.
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
    (("Italy", "義大利"), ("Rome", "羅馬"), "Europe", "Italian", None),
    (("Spain", "西班牙"), ("Madrid", "馬德里"), "Europe", "Spanish", ("Teide", "泰德峰")),
    (("Portugal", "葡萄牙"), ("Lisbon", "里斯本"), "Europe", "Portuguese", None),
    (("Greece", "希臘"), ("Athens", "雅典"), "Europe", "Greek", ("Mount Olympus", "奧林帕斯山")),
    (("Poland", "波蘭"), ("Warsaw", "華沙"), "Europe", "Polish", None),
    (("Sweden", "瑞典"), ("Stockholm", "斯德哥爾摩"), "Europe", "Swedish", None),
    (("Norway", "挪威"), ("Oslo", "奧斯陸"), "Europe", "Norwegian", None),
    (("Hungary", "匈牙利"), ("Budapest", "布達佩斯"), "Europe", "Hungarian", None),
    (("Taiwan", "台灣"), ("Taipei", "台北"), "Asia", None, ("Jade Mountain", "玉山")),
    (("Japan", "日本"), ("Tokyo", "東京"), "Asia", "Japanese", ("Mount Fuji", "富士山")),
    (("South Korea", "南韓"), ("Seoul", "首爾"), "Asia", "Korean", ("Hallasan", "漢拏山")),
    (("Thailand", "泰國"), ("Bangkok", "曼谷"), "Asia", "Thai", None),
    (("Vietnam", "越南"), ("Hanoi", "河內"), "Asia", "Vietnamese", ("Fansipan", "番西邦峰")),
    (("Nepal", "尼泊爾"), ("Kathmandu", "加德滿都"), "Asia", None, ("Mount Everest", "聖母峰")),
    (("India", "印度"), ("New Delhi", "新德里"), "Asia", None, None),
    (("Egypt", "埃及"), ("Cairo", "開羅"), "Africa", "Arabic", None),
    (("Kenya", "肯亞"), ("Nairobi", "奈洛比"), "Africa", None, None),
    (("Tanzania", "坦尚尼亞"), None, "Africa", None, ("Mount Kilimanjaro", "吉力馬札羅山")),
    (("Canada", "加拿大"), ("Ottawa", "渥太華"), "North America", None, ("Mount Logan", "洛根山")),
    (("Cuba", "古巴"), ("Havana", "哈瓦那"), "North America", "Spanish", None),
    (("Brazil", "巴西"), ("Brasilia", "巴西利亞"), "South America", "Portuguese", None),
    (
        ("Argentina", "阿根廷"),
        ("Buenos Aires", "布宜諾斯艾利斯"),
        "South America",
        "Spanish",
        ("Aconcagua", "阿空加瓜山"),
    ),
    (("Peru", "祕魯"), ("Lima", "利馬"), "South America", None, None),
    (("Australia", "澳洲"), ("Canberra", "坎培拉"), "Oceania", "English", ("Mount Kosciuszko", "科修斯科山")),
    (("New Zealand", "紐西蘭"), ("Wellington", "威靈頓"), "Oceania", "English", ("Mount Cook", "庫克山")),
]
_CONTINENTS = {
    "Europe": "歐洲", "Asia": "亞洲", "Africa": "非洲", "North America": "北美洲", "South America": "南美洲",
    "Oceania": "大洋洲",
}  # fmt: skip
# In Chinese the name of a language ends in 語 or 文; both count.
_LANGUAGE_STEMS = {
    "French": "法", "German": "德", "Italian": "義大利", "Spanish": "西班牙", "Portuguese": "葡萄牙", "Greek": "希臘",
    "Polish": "波蘭", "Swedish": "瑞典", "Norwegian": "挪威", "Hungarian": "匈牙利", "Japanese": "日", "Korean": "韓",
    "Thai": "泰", "Vietnamese": "越南", "Arabic": "阿拉伯", "English": "英",
}  # fmt: skip
_MORE_MOUNTAIN_NAMES = {
    "Mount Everest": (("Everest",), ("珠穆朗瑪峰",)),
    "Mount Fuji": (("Mt. Fuji", "Fuji"), ()),
    "Mount Kilimanjaro": (("Kilimanjaro",), ()),
    "Mount Cook": (("Aoraki",), ()),
    "Hallasan": ((), ("漢拿山",)),
    "Jade Mountain": (("Yushan",), ()),
    "Mount Olympus": (("Olympus",), ()),
    "Mount Logan": (("Mt. Logan",), ()),
    "Mount Kosciuszko": (("Kosciuszko",), ()),
}
_ELEMENTS = [
    ("iron", "鐵", "Fe"), ("gold", "金", "Au"), ("silver", "銀", "Ag"), ("copper", "銅", "Cu"), ("lead", "鉛", "Pb"),
    ("zinc", "鋅", "Zn"), ("sodium", "鈉", "Na"), ("magnesium", "鎂", "Mg"), ("aluminium", "鋁", "Al"),
    ("calcium", "鈣", "Ca"), ("helium", "氦", "He"), ("neon", "氖", "Ne"), ("nickel", "鎳", "Ni"), ("tin", "錫", "Sn"),
    ("mercury", "汞", "Hg"), ("titanium", "鈦", "Ti"), ("silicon", "矽", "Si"), ("lithium", "鋰", "Li"),
]  # fmt: skip
_BOILING_POINTS = [
    ("water", "水", 100), ("ethanol", "乙醇", 78), ("methanol", "甲醇", 65), ("acetone", "丙酮", 56),
    ("ammonia", "氨", -33), ("oxygen", "氧", -183), ("nitrogen", "氮", -196), ("hydrogen", "氫", -253),
    ("helium", "氦", -269), ("mercury", "汞", 357),
]  # fmt: skip
_LEG_NUMBERS = {2: ("two", "兩"), 4: ("four", "四"), 6: ("six", "六"), 8: ("eight", "八"), 10: ("ten", "十")}
_LEGS = [
    ("a dog", "狗", 4), ("a cat", "貓", 4), ("a horse", "馬", 4), ("a cow", "牛", 4), ("a sheep", "羊", 4),
    ("a chicken", "雞", 2), ("a duck", "鴨子", 2), ("an ostrich", "鴕鳥", 2), ("an ant", "螞蟻", 6), ("a bee", "蜜蜂", 6),
    ("a butterfly", "蝴蝶", 6), ("a mosquito", "蚊子", 6), ("a spider", "蜘蛛", 8), ("a scorpion", "蠍子", 8),
    ("a crab", "螃蟹", 10), ("a lobster", "龍蝦", 10),
]  # fmt: skip
_COLOUR_NAMES = {
    "yellow": ("黃色",), "green": ("綠色",), "red": ("紅色",), "white": ("白色",), "black": ("黑色",), "blue": ("藍色",),
    "orange": ("橘色", "橙色"), "brown": ("咖啡色", "棕色", "褐色"), "pink": ("粉紅色",), "purple": ("紫色",),
    "grey": ("灰色",),
}  # fmt: skip
_COLOURS = [
    ("a banana", "香蕉", "yellow"), ("a lemon", "檸檬", "yellow"), ("grass", "青草", "green"), ("spinach", "菠菜", "green"),
    ("blood", "血液", "red"), ("a strawberry", "草莓", "red"), ("snow", "雪", "white"), ("milk", "牛奶", "white"),
    ("coal", "煤炭", "black"), ("a crow", "烏鴉", "black"), ("a clear sky", "晴朗的天空", "blue"),
    ("a carrot", "紅蘿蔔", "orange"), ("chocolate", "巧克力", "brown"), ("a flamingo", "紅鶴", "pink"),
    ("an eggplant", "茄子", "purple"), ("an elephant", "大象", "grey"),
]  # fmt: skip
# No word is on both sides, so that naming the word asked about is never mistaken for an answer.
_OPPOSITES = [
    ("happy", "高興", "sad", "難過"), ("start", "開始", "finish", "結束"), ("safe", "安全", "dangerous", "危險"),
    ("simple", "簡單", "complex", "複雜"), ("clean", "乾淨", "dirty", "骯髒"), ("increase", "增加", "decrease", "減少"),
    ("success", "成功", "failure", "失敗"), ("day", "白天", "night", "夜晚"), ("inside", "裡面", "outside", "外面"),
    ("friend", "朋友", "enemy", "敵人"), ("brave", "勇敢", "cowardly", "膽小"), ("rich", "富有", "poor", "貧窮"),
    ("cheap", "便宜", "expensive", "昂貴"), ("cold", "寒冷", "hot", "炎熱"), ("bright", "明亮", "dark", "黑暗"),
    ("hard", "堅硬", "soft", "柔軟"), ("buy", "買進", "sell", "賣出"), ("public", "公開", "secret", "祕密"),
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
