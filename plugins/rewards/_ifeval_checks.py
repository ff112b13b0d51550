"""The 25 verifiable instructions, each a predicate on a text and the arguments that its row gives.

Source: Zhou et al. 2023, arXiv:2311.07911, table 1 and appendix; names of instructions and arguments as in its data,
and what counts as a match as in its code, as they were published. Where this file differs from that code:

- sentences are counted by rules (`count_sentences`) and not by NLTK's trained Punkt, which takes the "1." of a list for
  a sentence and ends one at "Stop!" in '"Stop!" he said';
- a word in capitals is one word where NLTK makes two of it ("DON'T");
- keywords, markers and the like are text and not regular expressions;
- a text in which no language can be told is in none, where the code lets every language pass; a text in capitals is
  read in small letters first;
- a star alone on its line is no bullet;
- the letter of `letter_frequency` may be any character, where the code draws another one for "!" or "#".
"""

import json
import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, StringConstraints
from pydantic import Field as Bounds

from unified_plugins.rewards._ifeval_text import count_capital_words, count_sentences, count_words
from unified_plugins.rewards._language import checked_language, language_of

Relation = Literal["at least", "less than"]
Count = Annotated[int, Bounds(ge=0)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Texts = Annotated[list[Text], Bounds(min_length=1)]
Letter = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1)]
Language = Annotated[str, AfterValidator(checked_language)]
Position = Annotated[int, Bounds(ge=1)]

#: any of these has to be in the answer
CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
#: the id of an instruction -> (text, its arguments by name) -> whether the text obeys
CHECKS: dict[str, Callable[..., bool]] = {}


def _instruction(name: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def enter(check: Callable[..., bool]) -> Callable[..., bool]:
        CHECKS[name] = check
        return check

    return enter


def _related(number: int, relation: str, limit: int) -> bool:
    """number >= limit for "at least", number < limit for "less than"."""
    return number >= limit if relation == "at least" else number < limit


# --- keywords ---


@_instruction("keywords:existence")
def existence(text: str, *, keywords: Texts) -> bool:
    """All of them occur, also inside words; capitals do not matter."""
    return all(_occurrences(text, keyword) for keyword in keywords)


@_instruction("keywords:frequency")
def frequency(text: str, *, keyword: Text, frequency: Count, relation: Relation) -> bool:
    """It occurs so often, also inside words; capitals do not matter."""
    return _related(_occurrences(text, keyword), relation, frequency)


@_instruction("keywords:forbidden_words")
def forbidden_words(text: str, *, forbidden_words: Texts) -> bool:
    """None of them occurs as a whole word; capitals do not matter."""
    return not any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text, re.IGNORECASE) for w in forbidden_words)


@_instruction("keywords:letter_frequency")
def letter_frequency(text: str, *, letter: Letter, let_frequency: Count, let_relation: Relation) -> bool:
    """The character occurs so often, small or capital."""
    return _related(text.lower().count(letter.lower()), let_relation, let_frequency)


def _occurrences(text: str, keyword: str) -> int:
    return sum(1 for _ in re.finditer(re.escape(keyword), text, re.IGNORECASE))


# --- language ---


@_instruction("language:response_language")
def response_language(text: str, *, language: Language) -> bool:
    """All of it, taken together, is in that language (an ISO 639-1 code)."""
    return language_of(text) == language


# --- length ---


@_instruction("length_constraints:number_sentences")
def number_sentences(text: str, *, num_sentences: Count, relation: Relation) -> bool:
    """It has so many sentences."""
    return _related(count_sentences(text), relation, num_sentences)


@_instruction("length_constraints:number_words")
def number_words(text: str, *, num_words: Count, relation: Relation) -> bool:
    """It has so many words."""
    return _related(count_words(text), relation, num_words)


@_instruction("length_constraints:number_paragraphs")
def number_paragraphs(text: str, *, num_paragraphs: Count) -> bool:
    """It has exactly so many paragraphs between *** dividers; only before the first and behind the last may be none."""
    parts = [part.strip() for part in text.split("***")]
    return all(parts[1:-1]) and sum(bool(part) for part in parts) == num_paragraphs


@_instruction("length_constraints:nth_paragraph_first_word")
def nth_paragraph_first_word(text: str, *, num_paragraphs: Count, nth_paragraph: Position, first_word: Text) -> bool:
    """Exactly so many paragraphs between empty lines, and the n-th, from 1, begins with that word.

    Paragraphs without text do not count, but keep their place. The word ends at a space or one of . , ? ! ' ".
    """
    parts = [part.strip() for part in text.split("\n\n")]
    if sum(bool(part) for part in parts) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    words = parts[nth_paragraph - 1].split()
    begin = re.match(r"[^.,?!'\"]*", words[0].lstrip("'").lstrip('"')) if words else None
    return begin is not None and begin[0].lower() == first_word.lower()


# --- content ---


@_instruction("detectable_content:number_placeholders")
def number_placeholders(text: str, *, num_placeholders: Count) -> bool:
    """At least so many placeholders in square brackets, each on one line: [name]."""
    return sum(_bracketed(line) for line in text.split("\n")) >= num_placeholders


def _bracketed(line: str) -> int:
    """Pairs of [ and the next ], from left to right."""
    count, at = 0, line.find("[")
    while at >= 0 and (end := line.find("]", at)) >= 0:
        count, at = count + 1, line.find("[", end)
    return count


@_instruction("detectable_content:postscript")
def postscript(text: str, *, postscript_marker: Text) -> bool:
    """It has the marker; P.S. and P.P.S also with spaces between the letters, small or capital."""
    spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return re.search(spaced.get(postscript_marker, re.escape(postscript_marker)), text, re.IGNORECASE) is not None


# --- format ---


@_instruction("detectable_format:number_bullet_lists")
def number_bullet_lists(text: str, *, num_bullets: Count) -> bool:
    """Exactly so many lines begin with * (but not **) or with -."""
    return sum(re.match(r"\*[^*]|-", line.lstrip()) is not None for line in text.split("\n")) == num_bullets


@_instruction("detectable_format:constrained_response")
def constrained_response(text: str) -> bool:
    """It has one of "My answer is yes.", "My answer is no.", "My answer is maybe."."""
    return any(option in text for option in CONSTRAINED)


@_instruction("detectable_format:number_highlighted_sections")
def number_highlighted_sections(text: str, *, num_highlights: Count) -> bool:
    """At least so many stretches between stars, *so* or **so**, each on one line and not blank."""
    once = re.findall(r"\*([^\n*]*)\*", text)
    twice = re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(inner.strip()) for inner in once + twice) >= num_highlights


@_instruction("detectable_format:multiple_sections")
def multiple_sections(text: str, *, section_spliter: Text, num_sections: Count) -> bool:
    """At least so many sections that begin with the word and a number: SECTION 1."""
    return len(re.findall(re.escape(section_spliter) + r"\s?\d+", text)) >= num_sections


@_instruction("detectable_format:json_format")
def json_format(text: str) -> bool:
    """All of it is JSON; a fence ```json around it may stand."""
    body = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    try:
        json.loads(body.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@_instruction("detectable_format:title")
def title(text: str) -> bool:
    """A line has a title in double angular brackets: <<so>>."""
    for line in text.split("\n"):
        begin, end = line.find("<<"), line.rfind(">>")
        if begin >= 0 and line[begin : end + 2].lstrip("<").rstrip(">").strip() and end > begin:
            return True
    return False


# --- combination ---


@_instruction("combination:two_responses")
def two_responses(text: str) -> bool:
    """Two different responses with ****** between them; only before the first and behind the last may be nothing."""
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


@_instruction("combination:repeat_prompt")
def repeat_prompt(text: str, *, prompt_to_repeat: Text) -> bool:
    """It begins with that text; capitals do not matter."""
    return text.strip().lower().startswith(prompt_to_repeat.lower())


# --- start and end ---


@_instruction("startend:end_checker")
def end_checker(text: str, *, end_phrase: Text) -> bool:
    """It ends with the phrase, perhaps in double quotes; capitals do not matter."""
    bare = text.strip().lower()
    return bare.endswith(end_phrase.lower()) or bare.strip('"').endswith(end_phrase.lower())


@_instruction("startend:quotation")
def quotation(text: str) -> bool:
    """All of it is in double quotes."""
    bare = text.strip()
    return len(bare) > 1 and bare.startswith('"') and bare.endswith('"')


# --- case and punctuation ---


@_instruction("change_case:capital_word_frequency")
def capital_word_frequency(text: str, *, capital_frequency: Count, capital_relation: Relation) -> bool:
    """It has so many words all in capitals."""
    return _related(count_capital_words(text), capital_relation, capital_frequency)


@_instruction("change_case:english_capital")
def english_capital(text: str) -> bool:
    """It is English and has no small letter."""
    return text.isupper() and language_of(text) == "en"


@_instruction("change_case:english_lowercase")
def english_lowercase(text: str) -> bool:
    """It is English and has no capital letter."""
    return text.islower() and language_of(text) == "en"


@_instruction("punctuation:no_comma")
def no_comma(text: str) -> bool:
    """It has no comma."""
    return "," not in text
