"""The prompts of the SmolLM2 references: (name, how to make it)."""

import pathlib

ESSAY = (pathlib.Path(__file__).parent / "essay.txt").read_text(encoding="utf-8").rstrip("\n")

CHATS = {
    "chat-short": [{"role": "user", "content": "What is the capital of France?"}],
    "chat-turns": [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Name a river in Germany."},
        {"role": "assistant", "content": "The Elbe is a river in Germany."},
        {"role": "user", "content": "And one in Egypt?"},
    ],
}

TEXTS = {
    "tokens-5": "Once upon a time,",
    "code-rust": "/// Greatest common divisor.\nfn gcd(mut a: u64, mut b: u64) -> u64 {\n    while b != 0 {\n        (a, b) = (b, a % b);\n    }\n    a\n}\n\n#[test]\nfn gcd_of_coprimes_is_one() {\n",
    "code-python": "import math\n\ndef primes(n):\n\t\"\"\"Primes below n.\"\"\"\n\tsieve = [True] * n\n\tfor i in range(2, int(math.sqrt(n)) + 1):\n\t\tif sieve[i]:\n",
    "list": "Groceries:\n1. bread\n2. butter\n3. apples\n4. coffee\n5.",
    "unicode": "Grüße aus Köln! Çok güzel. 你好，世界。こんにちは。안녕하세요. Привет, мир! שלום مرحبا नमस्ते สวัสดี 👩‍🚀🚒🇩🇪 e\u0301 naïve — “quotes” … ½ €\n",
    "digits": "1 12 123 1234 12345 3.14159265358979 1,000,000 0x7F 2^64 = 18446744073709551616; 7 * 6 =",
    "spaces": "a  b   c    d     e\t\tf\n\n\ng        h \n \n  i",
}

# Name, first word of the essay, wanted number of tokens.
WINDOWS = [
    ("tokens-20", 320, 20),
    ("tokens-40", 200, 40),
    ("tokens-80", 520, 80),
    ("tokens-150", 640, 150),
    ("tokens-300", 85, 300),
    ("tokens-600", 270, 600),
    ("tokens-1000", 0, 1000),
]


def window(first_word, tokens, count):
    """Whole words of the essay from `first_word` on, as many as fit into `tokens` tokens."""
    words = ESSAY.split(" ")[first_word:]
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(" ".join(words[:middle])) <= tokens else (low, middle - 1)
    return " ".join(words[:low])


def ledger(tokens, count):
    """The essay, then a ledger written by rule, in all close to `tokens` tokens."""
    towns = ["Alder Bend", "Fox Hollow", "Marsh End", "Stone Ferry", "Upper Mill"]
    weather = ["clear and cold", "light rain from the west", "fog until noon", "strong wind", "first snow"]
    text, day = ESSAY + "\n\nThe tally book, copied out:\n", 0
    while True:
        pails, lost = 40 + (day * 37) % 61, (day * day) % 4
        line = f"Day {day + 1}, {towns[day * 3 % 5]}: {weather[day * 2 % 5]}; {pails} pails sent, {pails - lost} returned, {lost} sent again.\n"
        if count(text + line) > tokens:
            return text
        text, day = text + line, day + 1


def all_prompts(render_chat, count):
    for name, messages in CHATS.items():
        yield name, render_chat(messages)
    yield from TEXTS.items()
    for name, first_word, tokens in WINDOWS:
        yield name, window(first_word, tokens, count)
    yield "tokens-1500", ledger(1500, count)
