"""Text for the demo model: every conversation is a pure function of (seed, task, index, length, most).

Only `random.Random.random()` is drawn from, the one method Python promises to keep stable, so the data is
bit-exact on every machine. A conversation is a list of (role, content); `render` is the chat template.

Tasks, each with many questions per conversation so that most tokens near the end carry a loss:
  recall      a list of pairs in the first message, then one question per turn
  facts       sentences about people, then one question per turn
  arithmetic  one sum per turn
  chat        small talk, mixed with the other tasks
"""

import hashlib
import random
import string

BOS, END, SYSTEM, USER, ASSISTANT, PAD = "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"
SPECIALS = [BOS, END, SYSTEM, USER, ASSISTANT, PAD]

VALUES = (
    "lamp rose boat desk drum fork gate harp iron jade kite leaf milk nest oven pear ring salt tree vase wolf yarn "
    "bell coin door fish glue hat inn jar key moon nut owl pig rope star tent wall bird cake duck egg fan goat "
    "horn lake map nail pan rock sand ship shoe snow soap song wind wood cup pen sun"
).split()
# Invented three-letter keys: one token each, so a thousand tokens of context hold about 330 distinct pairs.
KEYS = sorted({a + v + b for a in "bdfghjklmnprstvwz" for v in "aeiou" for b in "lmnpx"} - {*VALUES, "sex", "nip", "ten"})
NAMES = (
    "Anna Ben Carl Dora Emma Finn Greta Hugo Ida Jonas Kim Lara Max Nina Otto Paul Rosa Sam Tina Uma Vera Will Yara "
    "Zoe Adam Bella Clara David Eva Felix Gina Hans Iris Jack Karl Lena Mia Noah Olga Peter"
).split()
COLOURS = "red blue green yellow black white brown pink purple grey golden silver".split()
OBJECTS = "bicycle car lamp boat hat coat bag cup chair table phone book ball kite drum guitar watch scarf tent ring".split()
CITIES = "Paris Rome Berlin Madrid Vienna London Dublin Oslo Athens Lisbon Prague Warsaw Cairo Tokyo Boston Lima".split()
LIKES = "tea coffee bread cheese apples music chess soup rice fish cake honey books rain snow football".split()

SYSTEMS = [
    "You are a helpful assistant.",
    "You are the Lathe demo model.",
    "Answer briefly.",
    "You are a helpful assistant. Answer briefly.",
]
HELP = "Ask me a sum, or give me facts and ask about them."
CHAT = [
    (
        ["Hello", "Hello!", "Hi", "Hi!", "hi", "hello", "Hey", "hey", "Hi there!", "Hello there", "Good morning", "Good evening!", "Hey there", "Good day"],
        "Hello! I am the Lathe demo model. " + HELP,
    ),
    (
        ["Who are you?", "who are you", "Who are you", "What are you?", "What is your name?", "what is your name", "Tell me about yourself.", "Are you a robot?", "Who is this?", "Which model are you?", "Introduce yourself."],
        "I am a tiny language model, trained from scratch to test the Lathe engine.",
    ),
    (
        ["What can you do?", "what can you do", "What can you do", "Help", "help", "Can you help me?", "How can you help me?", "What do you know?", "What can I ask you?", "What are you able to do?", "What are you good at?"],
        "I can add and subtract small numbers, answer questions about facts in your message, and recall long lists of pairs.",
    ),
    (
        ["How are you?", "how are you", "How are you", "How do you do?", "How is it going?", "Are you well?"],
        "I am fine, thank you. How can I help you?",
    ),
    (
        ["Thanks", "Thanks!", "thanks", "Thank you", "Thank you!", "Thank you very much.", "Many thanks!", "Great, thanks!", "thank you", "Thanks a lot!", "Well done!"],
        "You are welcome!",
    ),
    (
        ["Bye", "Bye!", "bye", "Goodbye", "Goodbye!", "See you!", "See you later", "Good night", "Good night!"],
        "Goodbye!",
    ),
    (
        [
            "What is the capital of France?", "Tell me a joke.", "Write a poem.", "Why is the sky blue?", "Write a story about a dog.",
            "How old are you?", "What time is it?", "What is the weather like?", "Who won the game?", "Explain physics.", "What is love?",
            "Translate this to German.", "Write some code.", "How do I cook rice?", "What is the meaning of life?", "Sing a song.",
            "Do you like music?", "Who wrote this book?", "Tell me about history.", "What should I eat today?", "Is it going to rain?",
            "What is a compiler?", "How does a GPU work?", "Count to ten.", "Who is the president?", "Recommend a film.",
        ],
        "I am too small to know that. " + HELP,
    ),
]  # fmt: skip


class Rng:
    def __init__(self, *key):
        self.random = random.Random("/".join(map(str, key))).random

    def below(self, n):
        return int(self.random() * n)

    def between(self, low, high):
        return low + self.below(high - low + 1)

    def pick(self, items):
        return items[self.below(len(items))]

    def sample(self, items, n):
        items = list(items)
        for i in range(n):
            j = i + self.below(len(items) - i)
            items[i], items[j] = items[j], items[i]
        return items[:n]


def render(turns):
    """The chat template, as plain text; the Jinja form in `train.py` must give the same."""
    role = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
    return BOS + "".join(role[r] + c + END for r, c in turns)


# ---- arithmetic ----


def held_out(a, op, b):
    return hashlib.sha256(f"{a}{op}{b}".encode()).digest()[0] % 10 == 0


def operand(r):
    return r.below(10) if r.random() < 0.2 else r.below(100)


def problem(r, held, negative):
    while True:
        a, op, b = operand(r), r.pick("+-"), operand(r)
        if op == "-" and (a < b) != negative:
            a, b = b, a
        if held_out(a, op, b) == held:
            return a, op, b, str(a + b if op == "+" else a - b)


FORMS = ["{}{}{}=", "{}{}{}=", "{}{}{}", "What is {}{}{}?", "What is {} {} {}?"]


def arithmetic_turn(r, held=False, negative=None):
    # Differences below zero are taught now and then, and not part of the score.
    a, op, b, answer = problem(r, held, r.random() < 0.15 if negative is None else negative)
    u = r.random()
    form = FORMS[r.below(len(FORMS))] if u < 0.5 or held else FORMS[0]
    return form.format(a, op, b), answer


# ---- facts ----


def facts_context(r, n, kinds=(0, 1, 2)):
    """`n` sentences and their questions; a person may have one sentence of each kind, so name and kind both matter."""
    slots = r.sample([(name, kind) for name in r.sample(NAMES, min(len(NAMES), 2 + n * 2 // len(kinds))) for kind in kinds], n)
    sentences, asks = [], []
    for name, kind in slots:
        if kind == 0:
            colour, thing = r.pick(COLOURS), r.pick(OBJECTS)
            sentences.append(f"{name} has a {colour} {thing}.")
            asks.append((f"What colour is {name}'s {thing}?", colour))
        elif kind == 1:
            city = r.pick(CITIES)
            sentences.append(f"{name} lives in {city}.")
            asks.append((f"Where does {name} live?", city))
        else:
            like = r.pick(LIKES)
            sentences.append(f"{name} likes {like}.")
            asks.append((f"What does {name} like?", like))
    # A leading word keeps a space before every name, so that a name is always the same token.
    return "Facts: " + " ".join(sentences), asks


# ---- recall ----


def pairs_text(pairs):
    return "Pairs: " + ", ".join(f"{k} {v}" for k, v in pairs) + "."


def recall_context(r, n):
    pairs = [(k, r.pick(VALUES)) for k in r.sample(KEYS, n)]
    return pairs_text(pairs), pairs


# ---- conversations of about `length` tokens, with at most `most` pairs or sentences in a context ----
# Costs in tokens, good to a few per cent; the batch cuts what runs over.
PAIR, RECALL_TURN, SENTENCE, FACT_TURN, SUM_TURN = 3, 9, 6.2, 11.5, 11.4




def recall(r, length, most):
    """Half of them ask for a copy of the list or of chosen pairs: a loss on every token, which forms the
    key-to-value lookup long before single questions would. `most` bounds the pairs."""
    low = 0.05 if length < 600 else 0.4  # long conversations are there to teach long lists
    share = low + (0.9 - low) * r.random() ** (2 if length < 600 else 1)
    kind, left = r.random(), length - 24
    if kind < 0.2:
        share = min(share, 0.45)
    n = max(2, min(len(KEYS), int(left * share / PAIR), r.between(2, most)))
    text, pairs = recall_context(r, n)
    left -= n * PAIR
    turns = []
    if kind < 0.2:
        turns = [("user", text + " Say the pairs again."), ("assistant", text)]
        left -= n * PAIR
    elif kind < 0.5:
        some = r.sample(pairs, max(1, min(n, int(left * r.random() / (PAIR + 2)))))
        turns = [("user", f"{text} Fill in {', '.join(k for k, _ in some)}."), ("assistant", pairs_text(some))]
        left -= len(some) * (PAIR + 2)
    order = r.sample(pairs, n)
    for i in range(max(0 if turns else 1, int(left / RECALL_TURN))):
        key, value = order[i % n]
        ask = f"And {key}?" if turns and r.random() < 0.6 else f"What goes with {key}?"
        turns += [("user", ask if turns else text + " " + ask), ("assistant", value)]
    return turns


def facts(r, length, most):
    n = max(2, min(24, int(length * (0.15 + 0.6 * r.random()) / SENTENCE), r.between(2, most)))
    # One kind only, half the time: then only the name tells which sentence is meant.
    text, asks = facts_context(r, n, (r.below(3),) if r.random() < 0.5 else (0, 1, 2))
    order, turns = r.sample(asks, n), []
    for i in range(max(1, int((length - 8 - n * SENTENCE) / FACT_TURN))):
        ask, answer = order[i % n]
        turns += [("user", text + " " + ask if i == 0 else ask), ("assistant", answer)]
    return turns


def arithmetic(r, length, most=0):
    turns = []
    for _ in range(max(1, int((length - 4) / SUM_TURN))):
        ask, answer = arithmetic_turn(r)
        turns += [("user", ask), ("assistant", answer)]
    return turns


def chat_turn(r):
    asks, answer = r.pick(CHAT)
    return [("user", r.pick(asks)), ("assistant", answer)]


def chat(r, length, most):
    turns, used = [], 0
    while used < length - 60:
        kind = r.below(10)
        if kind < 6:
            turns, used = turns + chat_turn(r), used + 28
        elif kind < 8:
            turns, used = turns + arithmetic(r, 20), used + 13
        else:
            part = r.between(40, min(120, length - used))
            turns, used = turns + r.pick([facts, recall])(r, part, most), used + part
    return turns or chat_turn(r)


TASKS = {"recall": recall, "facts": facts, "arithmetic": arithmetic, "chat": chat}


def conversation(seed, task, index, length, most=1000):
    r = Rng(seed, task, index, length)
    turns = TASKS[task](r, length, most)
    if r.random() < 0.15:
        turns = [("system", r.pick(SYSTEMS))] + turns
    return turns


# ---- held-out cases: one question, as a user would ask it ----


def case(task, index, seed="held-out"):
    """One single-turn case. Another seed string than training uses; sums are held out by problem."""
    r = Rng(seed, task, index)
    if task == "arithmetic":
        ask, answer = arithmetic_turn(r, held=True, negative=False)
    elif task == "facts":
        text, asks = facts_context(r, r.between(4, 12))
        ask, answer = r.pick(asks)
        ask = text + " " + ask
    elif task == "chat":
        (_, ask), (_, answer) = chat_turn(r)
    else:
        # bos, user, "Pairs:" (2), 3 per pair, question (6), end, assistant
        text, pairs = recall_context(r, (int(task.removeprefix("recall_")) - 12) // PAIR)
        key, answer = r.pick(pairs)
        ask = f"{text} What goes with {key}?"
    return {"task": task, "messages": [{"role": "user", "content": ask}], "answer": answer}


CASES = {"arithmetic": 200, "facts": 200, "recall_256": 150, "recall_1000": 60, "chat": 60}


def tokenizer_corpus():
    """Words with weights chosen so that BPE makes a whole token of each, keys first."""
    words = []
    for k in KEYS:
        words += [f" {k}"] * 40
    for w in VALUES + COLOURS + CITIES + LIKES:
        words += [f" {w}"] * 60 + [w] * 60
    for w in NAMES + OBJECTS:
        words += [f" {w}"] * 60
    asks = "What is 12+7? What is 12 + 7?,What goes with tree? And tree?,Say the pairs again.,Fill in tree bell.,Where does Anna live?"
    asks += ",What does Ben like?,What colour is Carl's car?,Carl has a red car. Ben likes tea. Anna lives in Rome.,Facts: Anna,Pairs: tree"
    # Ordinary words and printable ASCII, so that free text is not spelt in bytes only.
    asks = [space + ask for ask in asks.split(",") for space in ("", " ")]
    return words + [string.printable] * 2 + asks * 60 + (SYSTEMS + [a for asks, b in CHAT for a in asks + [b]]) * 20
