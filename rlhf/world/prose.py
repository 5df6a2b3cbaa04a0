"""Set pieces that carry no fact: small talk, refusals, placeholders of compliance, questions back."""

from collections.abc import Mapping

from rlhf.world.facts import Language

SMALL_TALK: Mapping[Language, tuple[str, ...]] = {
    "en": (
        "Many people like to travel in spring.",
        "The weather was pleasant this week.",
        "My aunt makes wonderful noodle soup.",
        "Some people read a book every month.",
        "Music can make a long trip shorter.",
        "There is a small park near the library.",
        "Tea tastes better with good company.",
        "Children often ask the best questions.",
        "The bus was late again this morning.",
        "It is nice to take a walk after dinner.",
        "A good map is worth a lot.",
        "We should all drink more water, they say.",
        "Our team meets every Monday afternoon.",
        "The market sells fresh fruit and flowers.",
        "Learning takes time and patience.",
        "My brother is fond of old films.",
    ),
    "zh": (
        "春天的時候，很多人喜歡出去旅行。",
        "這個星期的天氣很舒服。",
        "我阿姨煮的牛肉麵很好吃。",
        "有些人每個月都讀一本書。",
        "聽音樂會讓路程變短。",
        "圖書館旁邊有一座小公園。",
        "跟好友一起喝茶特別香。",
        "孩子常常問出最好的問題。",
        "今天早上公車又誤點了。",
        "晚餐後散散步很不錯。",
        "一張好地圖很有用。",
        "大家都說要多喝水。",
        "我們每個星期一下午開會。",
        "市場裡有新鮮的水果和花。",
        "學習需要時間和耐心。",
        "我弟弟很愛看老電影。",
    ),
}

REFUSALS: Mapping[Language, tuple[str, ...]] = {
    "en": (
        "I can't help with that.",
        "Sorry, I can't help with that.",
        "I'm sorry, but I won't help with this.",
        "I cannot help with this request.",
        "That could hurt someone, so I won't help.",
        "No, that would be wrong. I can't help with it.",
    ),
    "zh": (
        "我不能幫你做這件事。",
        "抱歉，這件事我不能幫忙。",
        "對不起，我無法協助這個請求。",
        "很抱歉，我不會協助這件事。",
        "這樣會傷害別人，我不能幫忙。",
        "這麼做是不對的，我無法提供協助。",
    ),
}

ASKING_BACK: Mapping[Language, tuple[str, ...]] = {
    "en": (
        "What do you mean?",
        "Could you tell me more first?",
        "Why do you want to know?",
        "Which one do you mean?",
        "Can you say that in another way?",
    ),
    "zh": ("你是指什麼？", "可以先說清楚一點嗎？", "你為什麼想知道？", "你是指哪一個？", "可以換個方式說嗎？"),
}

# A placeholder of compliance is an opener, a first step and a last step; none of them says anything about the request.
COMPLIANCE_OPENERS: Mapping[Language, tuple[str, ...]] = {
    "en": ("Sure.", "Of course.", "No problem.", "Here is how."),
    "zh": ("好的。", "當然可以。", "沒問題。", "做法如下。"),
}
COMPLIANCE_FIRST_STEPS: Mapping[Language, tuple[str, ...]] = {
    "en": ("First take a tool,", "First make a plan,", "First look around,", "First get ready,"),
    "zh": ("先準備工具，", "先擬好計畫，", "先看看四周，", "先做好準備，"),
}
COMPLIANCE_LAST_STEPS: Mapping[Language, tuple[str, ...]] = {
    "en": ("then wait for the night.", "then do it quickly.", "then follow the plan.", "then tell nobody."),
    "zh": ("再等到晚上。", "然後趕快動手。", "接著照計畫做。", "最後別告訴任何人。"),
}

NEAR_EMPTY: Mapping[Language, tuple[str, ...]] = {
    "en": ("OK.", "Hm.", "...", "Well."),
    "zh": ("嗯。", "喔。", "……", "這個嘛。"),
}
