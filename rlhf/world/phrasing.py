"""How facts are asked about and stated: several wordings a relation and language.

`{entity}` and `{answer}` stand for names in the language of the wording. A wording's place in its tuple is its identity: the
split into training and held-out prompts is made by (fact, place).
"""

from collections.abc import Mapping

from rlhf.world.facts import Fact, Language

QUESTIONS: Mapping[str, Mapping[Language, tuple[str, ...]]] = {
    "capital": {
        "en": (
            "What is the capital of {entity}?",
            "Which city is the capital of {entity}?",
            "Name the capital of {entity}.",
            "Do you know the capital of {entity}?",
            "Please tell me {entity}'s capital city.",
            "I am learning about {entity}. What is its capital?",
        ),
        "zh": (
            "{entity}的首都是哪裡？",
            "{entity}的首都是哪個城市？",
            "請說出{entity}的首都。",
            "你知道{entity}的首都嗎？",
            "哪個城市是{entity}的首都？",
            "我在認識{entity}，它的首都是哪裡？",
        ),
    },
    "continent": {
        "en": (
            "Which continent is {entity} in?",
            "On which continent is {entity}?",
            "What continent does {entity} belong to?",
            "Name the continent of {entity}.",
            "Do you know which continent {entity} is in?",
            "I am looking for {entity} on a map. Which continent is it in?",
        ),
        "zh": (
            "{entity}在哪一洲？",
            "{entity}位於哪一洲？",
            "{entity}屬於哪個洲？",
            "請問{entity}是在哪一洲？",
            "你知道{entity}在哪一洲嗎？",
            "我在地圖上找{entity}，它在哪一洲？",
        ),
    },
    "language": {
        "en": (
            "What is the main language of {entity}?",
            "Which language do people speak in {entity}?",
            "What language is spoken in {entity}?",
            "Name the main language of {entity}.",
            "Do you know what people speak in {entity}?",
            "I will visit {entity}. Which language will I hear?",
        ),
        "zh": (
            "{entity}主要說什麼語言？",
            "{entity}人說哪一種語言？",
            "{entity}的主要語言是什麼？",
            "請說出{entity}的主要語言。",
            "你知道{entity}人說什麼語言嗎？",
            "我要去{entity}玩，當地人說什麼語言？",
        ),
    },
    "mountain": {
        "en": (
            "What is the highest mountain in {entity}?",
            "Which mountain is the highest in {entity}?",
            "Name the highest mountain in {entity}.",
            "Do you know the tallest mountain in {entity}?",
            "Please tell me the highest peak of {entity}.",
            "I like climbing. What is the highest mountain in {entity}?",
        ),
        "zh": (
            "{entity}最高的山是哪一座？",
            "{entity}的最高峰是什麼？",
            "請說出{entity}最高的山。",
            "你知道{entity}最高的山嗎？",
            "哪一座山是{entity}的最高峰？",
            "我喜歡爬山，{entity}最高的山是哪一座？",
        ),
    },
    "symbol": {
        "en": (
            "What is the chemical symbol of {entity}?",
            "What is the symbol for {entity}?",
            "How do chemists write {entity}?",
            "Name the chemical symbol of {entity}.",
            "Do you know the symbol of {entity}?",
            "I study chemistry. What is the symbol of {entity}?",
        ),
        "zh": (
            "{entity}的化學符號是什麼？",
            "{entity}的元素符號是什麼？",
            "{entity}的化學符號怎麼寫？",
            "請寫出{entity}的化學符號。",
            "你知道{entity}的元素符號嗎？",
            "我在讀化學，{entity}的符號是什麼？",
        ),
    },
    "boiling_point": {
        "en": (
            "What is the boiling point of {entity}?",
            "At what temperature does {entity} boil?",
            "How hot must {entity} be to boil?",
            "Name the boiling point of {entity}.",
            "Do you know when {entity} boils?",
            "I study physics. What is the boiling point of {entity}?",
        ),
        "zh": (
            "{entity}的沸點是幾度？",
            "{entity}在幾度會沸騰？",
            "{entity}的沸點是多少？",
            "請說出{entity}的沸點。",
            "你知道{entity}的沸點嗎？",
            "我在讀物理，{entity}的沸點是幾度？",
        ),
    },
    "legs": {
        "en": (
            "How many legs does {entity} have?",
            "What number of legs does {entity} have?",
            "{entity} has how many legs?",
            "Tell me how many legs {entity} has.",
            "Do you know how many legs {entity} has?",
            "I am drawing {entity}. How many legs does it have?",
        ),
        "zh": (
            "{entity}有幾條腿？",
            "{entity}有多少條腿？",
            "{entity}總共有幾條腿？",
            "請問{entity}有幾條腿？",
            "你知道{entity}有幾條腿嗎？",
            "我在畫{entity}，牠有幾條腿？",
        ),
    },
    "colour": {
        "en": (
            "What colour is {entity}?",
            "Which colour does {entity} have?",
            "Tell me the colour of {entity}.",
            "Name the usual colour of {entity}.",
            "Do you know what colour {entity} is?",
            "I am painting {entity}. What colour should I use?",
        ),
        "zh": (
            "{entity}是什麼顏色？",
            "{entity}通常是什麼顏色？",
            "請說出{entity}的顏色。",
            "{entity}的顏色是什麼？",
            "你知道{entity}是什麼顏色嗎？",
            "我在畫{entity}，該用什麼顏色？",
        ),
    },
    "opposite": {
        "en": (
            "What is the opposite of {entity}?",
            "Which word is the opposite of {entity}?",
            "Name the opposite of {entity}.",
            "Do you know the opposite of {entity}?",
            "Give me a word that means the opposite of {entity}.",
            "I am learning words. What is the opposite of {entity}?",
        ),
        "zh": (
            "「{entity}」的反義詞是什麼？",
            "「{entity}」的相反詞是什麼？",
            "請說出「{entity}」的反義詞。",
            "你知道「{entity}」的反義詞嗎？",
            "哪個詞和「{entity}」相反？",
            "我在學國語，「{entity}」的相反詞是什麼？",
        ),
    },
}

STATEMENTS: Mapping[str, Mapping[Language, tuple[str, ...]]] = {
    "capital": {
        "en": (
            "The capital of {entity} is {answer}.",
            "{answer} is the capital of {entity}.",
            "{entity}'s capital city is {answer}.",
        ),
        "zh": ("{entity}的首都是{answer}。", "{answer}是{entity}的首都。", "{entity}的首都叫做{answer}。"),
    },
    "continent": {
        "en": ("{entity} is in {answer}.", "{entity} belongs to {answer}.", "{entity} is a country in {answer}."),
        "zh": ("{entity}在{answer}。", "{entity}位於{answer}。", "{entity}屬於{answer}。"),
    },
    "language": {
        "en": (
            "People in {entity} speak {answer}.",
            "The main language of {entity} is {answer}.",
            "{answer} is spoken in {entity}.",
        ),
        "zh": ("{entity}人說{answer}。", "{entity}的主要語言是{answer}。", "{entity}主要說{answer}。"),
    },
    "mountain": {
        "en": (
            "The highest mountain in {entity} is {answer}.",
            "{answer} is the highest mountain in {entity}.",
            "The highest peak of {entity} is {answer}.",
        ),
        "zh": ("{entity}最高的山是{answer}。", "{answer}是{entity}最高的山。", "{entity}的最高峰是{answer}。"),
    },
    "symbol": {
        "en": (
            "The chemical symbol of {entity} is {answer}.",
            "The symbol for {entity} is {answer}.",
            "Chemists write {entity} as {answer}.",
        ),
        "zh": ("{entity}的化學符號是 {answer}。", "{entity}的元素符號是 {answer}。", "{entity}的符號寫作 {answer}。"),
    },
    "boiling_point": {
        "en": (
            "The boiling point of {entity} is {answer}.",
            "{entity} boils at {answer}.",
            "{entity} starts to boil at {answer}.",
        ),
        "zh": ("{entity}的沸點是{answer}。", "{entity}在{answer}沸騰。", "{entity}到{answer}就會沸騰。"),
    },
    "legs": {
        "en": ("{entity} has {answer}.", "{entity} walks on {answer}.", "You can count {answer} on {entity}."),
        "zh": ("{entity}有{answer}。", "{entity}總共有{answer}。", "{entity}用{answer}走路。"),
    },
    "colour": {
        "en": ("{entity} is {answer}.", "The colour of {entity} is {answer}.", "{entity} is usually {answer}."),
        "zh": ("{entity}是{answer}。", "{entity}的顏色是{answer}。", "{entity}通常是{answer}。"),
    },
    "opposite": {
        "en": (
            "The opposite of {entity} is {answer}.",
            "{answer} is the opposite of {entity}.",
            "{answer} means the opposite of {entity}.",
        ),
        "zh": (
            "「{entity}」的反義詞是「{answer}」。",
            "「{entity}」的相反詞是「{answer}」。",
            "「{answer}」和「{entity}」相反。",
        ),
    },
}

SHORT_ANSWERS: Mapping[Language, tuple[str, ...]] = {
    "en": ("{answer}.", "The answer is {answer}.", "Answer: {answer}."),
    "zh": ("{answer}。", "答案：{answer}。", "答案是「{answer}」。"),
}


def capitalised(sentence: str) -> str:
    """The sentence with its first letter large and the rest as it is (Chinese is left alone)."""
    return sentence[:1].upper() + sentence[1:]


def question(fact: Fact, language: Language, wording: int) -> str:
    """The question about a fact in one of its wordings."""
    return capitalised(QUESTIONS[fact.relation][language][wording].format(entity=fact.entity[language]))


def statement(fact: Fact, language: Language, wording: int, answer: str | None = None) -> str:
    """The fact in a full sentence; with another `answer`, the sentence that states that one."""
    wordings = STATEMENTS[fact.relation][language]
    filled = wordings[wording % len(wordings)].format(
        entity=fact.entity[language], answer=answer or fact.answer[language][0]
    )
    return capitalised(filled)


def short_answer(answer: str, language: Language, wording: int) -> str:
    """The bare answer, or nearly."""
    wordings = SHORT_ANSWERS[language]
    return capitalised(wordings[wording % len(wordings)].format(answer=answer))
