"""What the offline brain answers: a demo is interesting, and a test can predict it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.emulator.brain.arithmetic import solve
from gateway.emulator.brain.memory import answer, facts_in
from gateway.emulator.brain.rules import RuleBrain, reply
from gateway.emulator.protocol.brain import Comment, FunctionCall, Prompt

COUNTED = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20."


def ask(*said: str, instructions: str = "") -> str:
    """Send texts one after the other and return the answer to the last."""
    items = [
        {"id": str(n), "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        for n, text in enumerate(said)
    ]
    return reply(Prompt(instructions, items, [], "auto", "gpt-realtime"))


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Hello", "Hello! How can I help you?"),
        ("Good morning!", "Hello! How can I help you?"),
        ("Say hello.", "Hello there!"),
        ("Say hi", "Hello there!"),
        ("Repeat after me: hi", "hi"),
        ("repeat after me hello", "hello"),
        ("Repeat: the end", "the end"),
        ("Say: hello", "hello"),
        ("Say exactly hello", "hello"),
        ("echo my words", "my words"),
        ("Count to 20", COUNTED),
        ("count down from 3", "3, 2, 1."),
        ("Count from 5 to 2", "5, 4, 3, 2."),
        ("count to 30 by tens", "10, 20, 30."),
        ("Please count from two to four.", "2, 3, 4."),
        ("spell banana", "B-A-N-A-N-A."),
        ("Reverse stressed", "desserts"),
        ("How many letters are in the word house?", "The word house has 5 letters."),
        ("What is 12 * (3 + 4)?", "That is 84."),
        ("What is the capital of France?", "The capital of France is Paris."),
        ("List three colors", "red, orange, yellow."),
        ("Name the seasons", "spring, summer, autumn, winter."),
        ("Thanks a lot", "You are welcome!"),
        (
            "What is the capital of Atlantis?",
            'I am only a set of rules and do not know the answer to "What is the capital of Atlantis?"',
        ),
        (
            "What did I tell you?",
            'I am only a set of rules and do not know the answer to "What did I tell you?"',
        ),
        ("Goodbye", "Goodbye! It was good to talk to you."),
        ("ping", "Pong!"),
        ("ok", "All right. What would you like to do next?"),
        ("What time is it?", "Nobody has told me the date or the time."),
        ("", "I heard nothing. Could you say that again?"),
        ("The moon rises", 'You said: "The moon rises"'),
        (
            "Why is grass green?",
            'I am only a set of rules and do not know the answer to "Why is grass green?"',
        ),
    ],
)
def test_question_gets_its_answer(question: str, said: str) -> None:
    """A question gets the same answer each time."""
    assert ask(question) == said == ask(question)


def test_long_statement_is_shortened_when_repeated() -> None:
    """A text that no rule recognizes is quoted only in part."""
    assert len(ask("word " * 1000)) < 200


@pytest.mark.parametrize(
    "word", ["write ", "what is my ", "count to ", "1 + ", "( ", "My name is A B ", "\t \n", "remember "]
)
def test_book_is_answered_as_soon_as_a_sentence(word: str) -> None:
    """No pattern takes more than linear time for a long text."""
    before = time.thread_time()
    ask(word * 20_000)

    assert time.thread_time() - before < 2.0


@pytest.mark.parametrize("text", ["Grüße 👩‍🚀", "two\nlines", 'with "marks" inside', "1 + 1", "…"])
def test_repeated_text_is_verbatim(text: str) -> None:
    """`repeat after me` returns every character."""
    assert ask(f"Repeat after me: {text}") == text
    assert ask(f'Say "{text}".') == text


@pytest.mark.parametrize(
    ("instructions", "question", "said"),
    [
        ("Answer in two words.", "Say hello.", "Hello there!"),
        ("Answer in two words.", "Hello", "Hello there!"),
        ("Answer in one word.", "What is the capital of Japan?", "Tokyo."),
        ("Respond in at most 3 words.", "The moon rises tonight", "I see."),
        ("Reply in uppercase.", "ping", "PONG!"),
        ("lowercase only", "ping", "pong!"),
        ("Answer in one short sentence.", "Hello", "Hello!"),
        ('Always answer with "Nope."', "Hello", "Nope."),
        ('End every answer with "Over."', "ping", "Pong! Over."),
        ("The current time is 12:34. Be kind.", "What time is it?", "It is 12:34."),
        ("Today is Monday, 3 May 2027.", "What is today's date?", "It is Monday, 3 May 2027."),
    ],
)
def test_instructions_are_followed(instructions: str, question: str, said: str) -> None:
    """Simple requests for a form, and facts such as the time, are taken from the instructions."""
    assert ask(question, instructions=instructions) == said


@pytest.mark.parametrize(
    ("told", "question", "said"),
    [
        ("My name is Ada.", "What is my name?", "Your name is Ada."),
        ("Call me Ishmael please.", "Who am I?", "Your name is Ishmael."),
        ("Hello, I'm called Ada Lovelace today.", "Who am I?", "Your name is Ada Lovelace."),
        ("Remember that the code is 4711.", "What is the code?", "The code is 4711."),
        ("remember: the secret word is swordfish", "What's the secret word?", "The secret word is swordfish."),
        ("My favourite colour is teal!", "Tell me my favorite color.", "Your favorite color is teal."),
        ("I live in New York, you know.", "Where do I live?", "You live in New York."),
        ("I am 42 years old.", "How old am I?", "You are 42 years old."),
        ("I'm from Ghana.", "Where am I from?", "You are from Ghana."),
        ("My name is Bob but my dog is Rex.", "What is my name and dog?", "Your name is Bob, and your dog is Rex!"),
        ("Remember to buy milk", "What did I tell you to remember?", "You asked me to remember this: to buy milk"),
        ("Nothing", "What is my name?", "You have not told me your name."),
        ("Nothing", "How old am I?", "You have not told me how old you are."),
        ("My name is Ada.", "What is my name and age?", "Your name is Ada, and I do not know your age!"),
    ],
)  # fmt: skip
def test_facts_are_remembered(told: str, question: str, said: str) -> None:
    """A fact that was stated is known later in the same conversation."""
    assert ask(told, "Count to 3", question) == said


def test_last_word_counts() -> None:
    """A later statement of a fact replaces the older one."""
    assert (
        ask("The code is 1.", "My name is A.", "No, the code is 2.", "What is the code?") == "The code is 2."
    )


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("My name is Ada.", "Nice to meet you, Ada!"),
        ("My name is Ada and my cat is Tom.", "Nice to meet you, Ada! I will remember that."),
        ("Remember that the code is 1.", "I will remember that."),
        ("My cat is Tom.", "Good to know. I will remember your cat."),
    ],
)
def test_facts_are_acknowledged(told: str, said: str) -> None:
    """A stated fact is acknowledged."""
    assert ask(told) == said


def test_name_is_used_in_greetings() -> None:
    """A user who gave a name is greeted by it."""
    assert ask("My name is Ada.", "Hello") == "Hello Ada! How can I help you?"


def test_jokes_change_with_the_conversation() -> None:
    """The second joke differs from the first."""
    assert ask("Tell me a joke") != ask("Tell me a joke", "Tell me another joke")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("Write 500 words about trains", 500),
        ("Write exactly 1,000 words about the sea.", 1000),
        ("Write a story about a dog", 200),
        ("Give me a paragraph about tea", 60),
        ("Explain relays in a 30 word text about them", 30),
    ],
)
def test_long_text_has_the_length_asked_for(wish: str, words: int) -> None:
    """A text of a requested length is written about any subject."""
    assert len(ask(wish).split()) == words


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("seven plus five", "12"), ("2^10", "1024"), ("10/4", "2.5"), ("1/3", "0.333333"), ("15 percent of 80", "12"),
        ("square root of 144", "12"), ("√2", "1.414214"), ("1,000 + 1", "1001"), ("-3 - -4", "1"), ("(1+2)*3", "9"),
        ("2 squared plus 3 cubed", "31"), ("0.1 + 0.2", "0.3"), ("12 divided by 5", "2.4"), ("2^-1", "0.5"),
        ("1/0", None), ("hello", None), ("42", None), ("2^99999999", None), ("9^9^9^9", None), ("(" * 100 + "1+1", None),
        ("√(0-1)", None), ("the year 2026", None), ("1 + ", None), ("10^400 / 3", None), ("2026-11-22", "1993"),
    ],
)  # fmt: skip
def test_sums_are_worked_out(text: str, result: str | None) -> None:
    """Sums in words and signs are exact; one without a result, or with too large a one, gets no answer."""
    assert solve(text) == result


@given(st.text(alphabet="0123456789+-*/^√(). ", max_size=60))
def test_no_sum_breaks_the_solver(text: str) -> None:
    """Any sequence of signs quickly gives a number or nothing."""
    solved = solve(text)

    assert solved is None or float(solved) is not None


@given(st.lists(st.text(max_size=80), max_size=5), st.text(max_size=80))
def test_no_words_break_the_brain(said: list[str], instructions: str) -> None:
    """Every text gets some answer."""
    assert isinstance(ask(*said, instructions=instructions), str)


def test_memory_answers_only_what_it_was_asked() -> None:
    """A question about something without an owner ("my", "the") is not answered from memory."""
    facts = facts_in(["My name is Ada."])

    assert answer("What is the weather?", facts) is None
    assert answer("Nice day", facts) is None


async def test_brain_gives_tokens_then_calls() -> None:
    """Answers are streamed as tokens; with a matching tool, the newer model comments first and then calls."""
    tool = {"type": "function", "name": "get_weather", "parameters": {}}
    item = {
        "id": "1",
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "weather?"}],
    }
    brain = RuleBrain()

    older = [p async for p in brain.answer(Prompt("", [item], [tool], "auto", "gpt-realtime"))]
    newer = [p async for p in brain.answer(Prompt("", [item], [tool], "auto", "gpt-realtime-2.1"))]
    plain = [p async for p in brain.answer(Prompt("", [item], [], "auto", "gpt-realtime"))]

    assert older == [FunctionCall("get_weather", "{}")]
    assert newer == [Comment("Let"), Comment(" me"), Comment(" check"), Comment("."), *older]
    assert len(plain) > 5
    assert all(isinstance(piece, str) for piece in plain)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("It is foggy.", "It is foggy."),
        ('{"a":1,"b":"x"}', "Here is what I found: a is 1; b is x."),
        ("[1,2]", "Here is what I found: 1, 2."),
        ("", "Done."),
        ("42", "42"),
    ],
)
def test_function_output_is_put_in_words(output: str, said: str) -> None:
    """A text result is repeated unchanged, a JSON result in a sentence."""
    item = {"id": "1", "type": "function_call_output", "call_id": "c", "output": output}

    assert reply(Prompt("", [item], [], "auto", "gpt-realtime")) == said


def test_instruction_that_names_no_number_changes_nothing() -> None:
    """The words "a few" set no exact limit."""
    assert ask("Hello", instructions="Answer in few words.") == "Hello! How can I help you?"


def test_facts_are_bounded() -> None:
    """The number of facts that are searched is bounded."""
    facts = facts_in(f"My thing{number} is {number}." for number in range(2000))

    assert 500 <= len(facts) <= 510


def test_what_is_ones_own_is_not_overwritten() -> None:
    """A remark about "the dog" does not change what is known of "my dog", and a trailing "and" asks for nothing."""
    facts = facts_in(["My dog is Rex.", "The dog is called Bella."])

    assert facts["dog"] == ("my", "Rex")
    assert answer("What is my dog and my?", facts) == ("Your dog is Rex.", "Rex")


@pytest.mark.parametrize(
    "question",
    ["2 ^ 900", "99999999999 ^ 200", "2 ^ 0.5", "2 * (3 + 4", "2 + )", "2 + " + "-" * 40 + "3", "2 + 3 )"],
)
def test_sum_without_an_answer_is_not_worked_out(question: str) -> None:
    """A sum that is too large, has a fractional power or an open bracket is not computed, and that takes no time."""
    assert solve(question) is None
