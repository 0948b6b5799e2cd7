"""OPERATIONS: the parts that programs are put together from, each with its code and several ways to ask for it.

A value is one of five kinds. An operation takes one kind to another; `{x}` in its code is the variable that holds its
input, `{k}` in code and phrases its parameter. All are total: no input of their kind makes them fail. To add one, add
a line; `known` ones also occur in the pre-training corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a program."""

    name: str
    source: str
    """Kind of the input: numbers, text, words, scores."""
    target: str
    """Kind of the output: a source's, or total, which ends a program."""
    code: str
    known: bool
    """Whether the pre-training corpus has it."""
    doc: str
    """How a docstring of the corpus names it."""
    phrases: tuple[str, ...]
    """How instructions ask for it; the last one is never in the corpus."""
    values: tuple[object, ...] = (None,)
    """What the parameter may be; None where there is none."""


KINDS = {
    "numbers": "a list of integers",
    "text": "a string",
    "words": "a list of strings",
    "scores": "a dictionary from strings to integers",
}
"""What programs take, as instructions say it."""

SMALL = (2, 3, 4)
ANY = (2, 3, 4, 5, 6, 7, 8, 9)
LETTERS = ("a", "e", "o", "s", "t", "r")
MARKS = ("-", "+", "/", "_", ":")


def _table(source: str, target: str, *rows: tuple[object, ...]) -> list[Operation]:
    """Make operations of (name, known, code, doc, phrases) and perhaps values."""
    made = []
    for name, known, code, doc, phrases, *values in rows:
        assert isinstance(phrases, str)
        ways = tuple(phrases.split(" | "))
        one = Operation(str(name), source, target, str(code), bool(known), str(doc), ways, *values)  # type: ignore[arg-type]
        made.append(one)
    return made


_ALL: Sequence[Operation] = [
    *_table(
        "numbers", "numbers",
        ("keep-even", 1, "[n for n in {x} if n % 2 == 0]", "even ones",
         "keep only the even numbers | drop the odd numbers | leave out every number that is not even"),
        ("keep-odd", 1, "[n for n in {x} if n % 2 != 0]", "odd ones",
         "keep only the odd numbers | drop the even numbers | leave out every number that is not odd"),
        ("keep-above", 1, "[n for n in {x} if n > {k}]", "above {k}",
         "keep the numbers greater than {k} | drop the numbers that are at most {k} | select what is above {k}", ANY),
        ("keep-below", 1, "[n for n in {x} if n < {k}]", "below {k}",
         "keep the numbers less than {k} | drop the numbers that are at least {k} | select what is below {k}", ANY),
        ("keep-multiples", 0, "[n for n in {x} if n % {k} == 0]", "multiples of {k}",
         "keep the multiples of {k} | drop what {k} does not divide | select the numbers divisible by {k}", (3, 4, 5)),
        ("drop-multiples", 0, "[n for n in {x} if n % {k} != 0]", "no multiples of {k}",
         "drop the multiples of {k} | keep what {k} does not divide | remove the numbers divisible by {k}", (3, 4, 5)),
        ("keep-positive", 1, "[n for n in {x} if n > 0]", "positive ones",
         "keep only the positive numbers | drop zeros and negative numbers | ignore what is not positive"),
        ("keep-negative", 0, "[n for n in {x} if n < 0]", "negative ones",
         "keep only the negative numbers | drop zeros and positive numbers | ignore what is not negative"),
        ("skip-value", 0, "[n for n in {x} if n != {k}]", "without {k}",
         "remove every {k} | leave out the number {k} | keep what differs from {k}", (0, 1, 2, 3)),
        ("add", 1, "[n + {k} for n in {x}]", "plus {k}",
         "add {k} to each number | increase every number by {k} | raise all numbers by {k}", ANY),
        ("subtract", 1, "[n - {k} for n in {x}]", "minus {k}",
         "subtract {k} from each number | decrease every number by {k} | lower all numbers by {k}", ANY),
        ("multiply", 1, "[n * {k} for n in {x}]", "times {k}",
         "multiply each number by {k} | scale every number by {k} | replace the numbers by {k} times their value", ANY),
        ("divide", 0, "[n // {k} for n in {x}]", "floor division by {k}",
         "divide each number by {k}, rounding down | take the whole part of every number over {k} | "
         "floor-divide the numbers by {k}", SMALL),
        ("remainder", 1, "[n % {k} for n in {x}]", "modulo {k}",
         "take each number modulo {k} | replace every number by its remainder after division by {k} | "
         "reduce all numbers modulo {k}", (3, 4, 5, 7)),
        ("square", 1, "[n * n for n in {x}]", "squares",
         "square each number | replace every number by its square | multiply all numbers by themselves"),
        ("negate", 1, "[-n for n in {x}]", "negated",
         "negate each number | flip the sign of every number | replace all numbers by their opposites"),
        ("absolute", 0, "[abs(n) for n in {x}]", "absolute values",
         "take the absolute value of each number | drop the sign of every number | make all numbers non-negative"),
        ("at-least", 0, "[max(n, {k}) for n in {x}]", "at least {k}",
         "raise numbers below {k} to {k} | replace what is smaller than {k} by {k} | "
         "clip every number from below at {k}",
         (0, 1, 2, 3, 5)),
        ("at-most", 0, "[min(n, {k}) for n in {x}]", "at most {k}",
         "lower numbers above {k} to {k} | replace what is larger than {k} by {k} | "
         "clip every number from above at {k}",
         (3, 4, 5, 8, 9)),
        ("sort", 1, "sorted({x})", "ascending",
         "sort the numbers in ascending order | order the numbers from smallest to largest | sort the numbers upwards"),
        ("sort-down", 1, "sorted({x}, reverse=True)", "descending",
         "sort the numbers in descending order | order the numbers from largest to smallest | "
         "sort the numbers downwards"),
        ("reverse", 1, "{x}[::-1]", "reversed",
         "reverse the list | turn the list around | put the list in reverse order"),
        ("first", 1, "{x}[:{k}]", "first {k}",
         "take the first {k} numbers | keep {k} numbers from the start | cut the list after {k} numbers", SMALL),
        ("last", 0, "{x}[-{k}:]", "last {k}",
         "take the last {k} numbers | keep {k} numbers from the end | forget all but the final {k} numbers", SMALL),
        ("skip-first", 1, "{x}[{k}:]", "after the first {k}",
         "skip the first {k} numbers | remove {k} numbers from the start | begin after {k} numbers", (1, 2, 3)),
        ("skip-last", 0, "{x}[:-{k}]", "before the last {k}",
         "skip the last {k} numbers | remove {k} numbers from the end | stop {k} numbers before the end", (1, 2, 3)),
        ("every-other", 1, "{x}[::2]", "every other",
         "take every other number | keep the numbers at even positions | skip each second number"),
        ("odd-positions", 0, "{x}[1::2]", "odd positions",
         "keep the numbers at odd positions | take every other number from the second on | keep each second number"),
        ("unique", 1, "list(dict.fromkeys({x}))", "without repeats",
         "remove duplicates | keep the first of equal numbers | drop numbers that were seen before"),
        ("running-sums", 0, "[sum({x}[: i + 1]) for i in range(len({x}))]", "running sums",
         "form the running sums | replace each number by the sum up to it | accumulate the numbers"),
        ("differences", 0, "[b - a for a, b in zip({x}, {x}[1:])]", "differences",
         "take the differences of neighbours | subtract from each number the one before it | "
         "form successive differences"),
        ("pair-sums", 1, "[a + b for a, b in zip({x}, {x}[1:])]", "sums of neighbours",
         "add up neighbours | form the sum of each two adjacent numbers | replace the list by its neighbour sums"),
        ("times-index", 1, "[i * n for i, n in enumerate({x})]", "times index",
         "multiply each number by its index | weight every number with its position | "
         "scale the numbers by their index"),
        ("plus-index", 0, "[i + n for i, n in enumerate({x})]", "plus index",
         "add its index to each number | increase every number by its position | shift the numbers by their index"),
        ("repeat", 1, "{x} + {x}", "twice over",
         "repeat the list once | append the list to itself | put the list twice in a row"),
        ("mirror", 0, "{x} + {x}[::-1]", "mirrored",
         "append the reversed list | mirror the list | continue the list backwards"),
        ("rotate", 0, "{x}[1:] + {x}[:1]", "rotated",
         "move the first number to the end | rotate the list to the left | "
         "shift the list by one, the first going last"),
        ("append", 1, "[*{x}, {k}]", "then {k}",
         "append {k} | add {k} at the end of the list | put a {k} behind the numbers", (0, 1, 5, 9)),
        ("prepend", 0, "[{k}, *{x}]", "{k} first",
         "prepend {k} | add {k} at the start of the list | put a {k} before the numbers", (0, 1, 5, 9)),
        ("digit-sums", 0, "[sum(int(d) for d in str(abs(n))) for n in {x}]", "digit sums",
         "take the digit sum of each number | add up the digits of every number | "
         "replace all numbers by their digit sums"),
    ),
    *_table(
        "numbers", "total",
        ("sum", 1, "sum({x})", "sum",
         "compute the sum | add up all numbers | give the total"),
        ("count", 1, "len({x})", "count",
         "count the numbers | compute how many numbers there are | give the length of the list"),
        ("maximum", 1, "max({x}, default={k})", "maximum, or {k}",
         "find the largest number, or {k} if there is none | give the maximum ({k} for an empty list) | "
         "pick the greatest number, {k} when nothing is left", (0, -1)),
        ("minimum", 0, "min({x}, default={k})", "minimum, or {k}",
         "find the smallest number, or {k} if there is none | give the minimum ({k} for an empty list) | "
         "pick the least number, {k} when nothing is left", (0, -1)),
        ("spread", 0, "max({x}, default=0) - min({x}, default=0)", "range",
         "compute the largest minus the smallest | give the range of the numbers | find the gap between the extremes"),
        ("count-even", 1, "sum(1 for n in {x} if n % 2 == 0)", "number of even ones",
         "count the even numbers | compute how many numbers are even | give the number of even entries"),
        ("count-above", 0, "sum(1 for n in {x} if n > {k})", "number above {k}",
         "count the numbers greater than {k} | compute how many numbers exceed {k} | "
         "give the number of entries above {k}",
         ANY),
        ("sum-squares", 0, "sum(n * n for n in {x})", "sum of squares",
         "compute the sum of the squares | add up the squared numbers | give the total of all squares"),
        ("distinct", 1, "len(set({x}))", "distinct count",
         "count the distinct numbers | compute how many different numbers there are | "
         "give the number of distinct values"),
        ("alternating", 0, "sum({x}[::2]) - sum({x}[1::2])", "alternating sum",
         "compute the alternating sum | add and subtract the numbers in turn | give the sum with alternating signs"),
    ),
    *_table(
        "numbers", "text",
        ("join-numbers", 1, '"{k}".join(str(n) for n in {x})', "joined with {k}",
         "join the numbers with '{k}' | write the numbers as text with '{k}' between them | "
         "glue the numbers together by '{k}'",
         MARKS),
    ),
    *_table(
        "numbers", "words",
        ("spell", 0, "[str(n) for n in {x}]", "as strings",
         "convert each number to a string | turn all numbers into text | write every number as a string"),
    ),
    *_table(
        "text", "text",
        ("lower", 1, "{x}.lower()", "lower case",
         "convert the text to lower case | make all letters small | lowercase the string"),
        ("upper", 1, "{x}.upper()", "upper case",
         "convert the text to upper case | make all letters capital | uppercase the string"),
        ("swap-case", 0, "{x}.swapcase()", "swapped case",
         "swap the case of all letters | turn small letters into capitals and capitals into small ones | "
         "invert the case"),
        ("title", 0, "{x}.title()", "title case",
         "convert the text to title case | start every word with a capital | titlecase the string"),
        ("reverse-text", 1, "{x}[::-1]", "reversed",
         "reverse the string | read the text backwards | turn the string around"),
        ("remove-char", 1, '{x}.replace("{k}", "")', "without {k}",
         "remove every '{k}' | delete the letter '{k}' | strip out all occurrences of '{k}'", LETTERS),
        ("mark-char", 0, '{x}.replace("{k}", "*")', "{k} starred",
         "replace every '{k}' with a star | put '*' for the letter '{k}' | "
         "mask all occurrences of '{k}' by '*'", LETTERS),
        ("mark-spaces", 1, '{x}.replace(" ", "{k}")', "{k} for spaces",
         "replace spaces with '{k}' | put '{k}' for each space | turn every blank into '{k}'", MARKS),
        ("letters-only", 1, '"".join(c for c in {x} if c.isalpha())', "letters",
         "keep only the letters | drop all characters that are not letters | remove everything but letters"),
        ("digits-only", 0, '"".join(c for c in {x} if c.isdigit())', "digits",
         "keep only the digits | drop all characters that are not digits | remove everything but digits"),
        ("no-vowels", 1, '"".join(c for c in {x} if c.lower() not in "aeiou")', "without vowels",
         "remove the vowels | drop every vowel | leave out a, e, i, o and u"),
        ("vowels-only", 0, '"".join(c for c in {x} if c.lower() in "aeiou")', "vowels",
         "keep only the vowels | drop all characters that are not vowels | remove everything but a, e, i, o and u"),
        ("double-chars", 0, '"".join(c * 2 for c in {x})', "doubled characters",
         "double each character | write every character twice | repeat all characters once"),
        ("first-chars", 1, "{x}[:{k}]", "first {k} characters",
         "take the first {k} characters | keep {k} characters from the start | cut the text after {k} characters",
         (3, 4, 5, 6)),
        ("last-chars", 0, "{x}[-{k}:]", "last {k} characters",
         "take the last {k} characters | keep {k} characters from the end | forget all but the final {k} characters",
         (3, 4, 5, 6)),
        ("sort-chars", 1, '"".join(sorted({x}))', "sorted characters",
         "sort the characters | put the characters in order | arrange the characters from lowest to highest"),
        ("unique-chars", 0, '"".join(dict.fromkeys({x}))', "without repeated characters",
         "remove repeated characters | keep the first of equal characters | drop characters that were seen before"),
        ("suffix", 1, '{x} + "{k}"', "then {k}",
         "add '{k}' at the end of the text | append '{k}' | end the text with '{k}'", ("!", "?", "ing", "es")),
        ("prefix", 0, '"{k}" + {x}', "{k} first",
         "add '{k}' at the start of the text | put '{k}' in front | "
         "begin the text with '{k}'", ("> ", "# ", "un", "re")),
    ),
    *_table(
        "text", "words",
        ("split", 1, "{x}.split()", "words",
         "split the text into words | cut the text at its spaces | break the string into its words"),
        ("characters", 1, "list({x})", "characters",
         "turn the text into a list of characters | split the text into single characters | list all characters"),
    ),
    *_table(
        "text", "numbers",
        ("digits", 1, "[int(c) for c in {x} if c.isdigit()]", "digits as numbers",
         "collect the digits as integers | list the digits of the text as numbers | turn each digit into a number"),
        ("codes", 0, "[ord(c) for c in {x}]", "character codes",
         "list the character codes | turn each character into its code point | take the code of every character"),
        ("word-lengths", 0, "[len(w) for w in {x}.split()]", "word lengths",
         "list the lengths of its words | measure each word of the text | turn the text into its word lengths"),
    ),
    *_table(
        "text", "total",
        ("length", 1, "len({x})", "length",
         "compute the length of the text | count the characters | give the number of characters"),
        ("count-vowels", 0, 'sum(1 for c in {x} if c.lower() in "aeiou")', "number of vowels",
         "count the vowels | compute how many vowels there are | give the number of vowels"),
        ("count-char", 1, '{x}.count("{k}")', "number of {k}",
         "count the letter '{k}' | compute how often '{k}' occurs | give the number of occurrences of '{k}'", LETTERS),
        ("count-words", 0, "len({x}.split())", "number of words",
         "count the words | compute how many words there are | give the number of words"),
        ("distinct-chars", 0, "len(set({x}))", "distinct characters",
         "count the distinct characters | compute how many different characters occur | "
         "give the number of distinct characters"),
    ),
    *_table(
        "words", "words",
        ("upper-words", 1, "[w.upper() for w in {x}]", "upper case",
         "convert each word to upper case | capitalize all letters of every word | uppercase the words"),
        ("lower-words", 1, "[w.lower() for w in {x}]", "lower case",
         "convert each word to lower case | make all letters of every word small | lowercase the words"),
        ("capitalize", 0, "[w.capitalize() for w in {x}]", "capitalized",
         "capitalize each word | make only the first letter of every word a capital | "
         "give all words an initial capital"),
        ("reverse-each", 1, "[w[::-1] for w in {x}]", "each reversed",
         "reverse each word | spell every word backwards | turn all words around letter by letter"),
        ("longer", 1, "[w for w in {x} if len(w) > {k}]", "longer than {k}",
         "keep the words longer than {k} letters | drop words of at most {k} letters | "
         "select words with more than {k} letters", (2, 3, 4, 5)),
        ("shorter", 0, "[w for w in {x} if len(w) < {k}]", "shorter than {k}",
         "keep the words shorter than {k} letters | drop words of at least {k} letters | "
         "select words with fewer than {k} letters", (4, 5, 6)),
        ("with-letter", 1, '[w for w in {x} if "{k}" in w]', "with {k}",
         "keep the words that contain '{k}' | drop words without '{k}' | select words with the letter '{k}'", LETTERS),
        ("without-letter", 0, '[w for w in {x} if "{k}" not in w]', "without {k}",
         "keep the words that lack '{k}' | drop words that contain '{k}' | "
         "select words without the letter '{k}'", LETTERS),
        ("ending", 0, '[w for w in {x} if w.endswith("{k}")]', "ending in {k}",
         "keep the words that end with '{k}' | drop words that do not end with '{k}' | "
         "select words whose last letter is '{k}'", LETTERS),
        ("sort-words", 1, "sorted({x})", "sorted",
         "sort the words alphabetically | put the words in alphabetical order | order the words from A to Z"),
        ("sort-length", 0, "sorted({x}, key=len)", "by length",
         "sort the words by length | order the words from shortest to longest | put short words before long ones"),
        ("reverse-words", 1, "{x}[::-1]", "reversed",
         "reverse the order of the words | put the last word first and so on | list the words from last to first"),
        ("first-words", 1, "{x}[:{k}]", "first {k}",
         "take the first {k} words | keep {k} words from the start | cut the list after {k} words", SMALL),
        ("last-words", 0, "{x}[-{k}:]", "last {k}",
         "take the last {k} words | keep {k} words from the end | forget all but the final {k} words", SMALL),
        ("skip-words", 0, "{x}[{k}:]", "after the first {k}",
         "skip the first {k} words | remove {k} words from the start | begin after {k} words", (1, 2)),
        ("unique-words", 1, "list(dict.fromkeys({x}))", "without repeats",
         "remove duplicate words | keep the first of equal words | drop words that were seen before"),
        ("initials", 1, "[w[:1] for w in {x}]", "initials",
         "take the first letter of each word | replace every word by its initial | shorten all words to one letter"),
        ("shorten", 0, "[w[:{k}] for w in {x}]", "cut to {k}",
         "cut each word to {k} letters | keep the first {k} letters of every word | "
         "shorten all words to {k} letters", SMALL),
        ("tag", 0, '[w + "{k}" for w in {x}]', "each with {k}",
         "add '{k}' to each word | append '{k}' to every word | end all words with '{k}'", ("s", "er", "!", "_")),
        ("number-words", 0, "[str(i) + w for i, w in enumerate({x})]", "numbered",
         "put its index before each word | number the words from 0 | prefix every word with its position"),
    ),
    *_table(
        "words", "numbers",
        ("lengths", 1, "[len(w) for w in {x}]", "lengths",
         "take the length of each word | replace every word by its number of letters | list the word lengths"),
        ("letter-counts", 0, '[w.count("{k}") for w in {x}]', "counts of {k}",
         "count '{k}' in each word | list how often every word has '{k}' | replace all words by their number of '{k}'",
         LETTERS),
    ),
    *_table(
        "words", "text",
        ("join-words", 1, '"{k}".join({x})', "joined with {k}",
         "join the words with '{k}' | put the words into one string with '{k}' between them | "
         "glue the words together by '{k}'",
         MARKS),
        ("longest", 0, 'max({x}, key=len, default="")', "longest",
         "find the longest word, or an empty string | pick the first word of greatest length ('' if there is none) | "
         "give the word with the most letters, '' for no words"),
        ("concatenate", 0, '"".join({x})', "concatenated",
         "concatenate the words | join the words without a separator | put all words together as one string"),
    ),
    *_table(
        "words", "total",
        ("count-list", 1, "len({x})", "count",
         "count the words | compute how many words there are | give the number of words"),
        ("total-length", 0, "sum(len(w) for w in {x})", "total length",
         "add up the word lengths | compute the total number of letters | give the combined length of all words"),
        ("count-long", 1, "sum(1 for w in {x} if len(w) > {k})", "number longer than {k}",
         "count the words longer than {k} letters | compute how many words have more than {k} letters | "
         "give the number of words with over {k} letters", (2, 3, 4, 5)),
        ("distinct-words", 0, "len(set({x}))", "distinct count",
         "count the distinct words | compute how many different words there are | give the number of distinct words"),
    ),
    *_table(
        "words", "scores",
        ("tally", 1, "{{w: {x}.count(w) for w in {x}}}", "tally",
         "map each word to how often it occurs | count every word in a dictionary | build a tally of the words"),
        ("map-lengths", 1, "{{w: len(w) for w in {x}}}", "length of each",
         "map each word to its length | build a dictionary of word lengths | give every word its number of letters"),
        ("positions", 0, "{{w: i for i, w in enumerate({x})}}", "last index of each",
         "map each word to its last index | build a dictionary of positions | "
         "give every word the index where it stands last"),
    ),
    *_table(
        "scores", "scores",
        ("values-above", 1, "{{key: v for key, v in {x}.items() if v > {k}}}", "values above {k}",
         "keep the entries with a value greater than {k} | drop entries whose value is at most {k} | "
         "select entries valued above {k}", (1, 2, 3, 4, 5)),
        ("values-below", 0, "{{key: v for key, v in {x}.items() if v < {k}}}", "values below {k}",
         "keep the entries with a value less than {k} | drop entries whose value is at least {k} | "
         "select entries valued below {k}", (3, 4, 5, 6, 7)),
        ("scale-values", 1, "{{key: v * {k} for key, v in {x}.items()}}", "values times {k}",
         "multiply each value by {k} | scale every value by {k} | replace the values by {k} times their size", ANY),
        ("raise-values", 0, "{{key: v + {k} for key, v in {x}.items()}}", "values plus {k}",
         "add {k} to each value | increase every value by {k} | raise all values by {k}", ANY),
        ("upper-keys", 0, "{{key.upper(): v for key, v in {x}.items()}}", "keys in upper case",
         "convert the keys to upper case | make all letters of every key capital | uppercase the keys"),
        ("keys-with", 0, '{{key: v for key, v in {x}.items() if "{k}" in key}}', "keys with {k}",
         "keep the entries whose key contains '{k}' | drop entries without '{k}' in the key | "
         "select entries with the letter '{k}' in their key", LETTERS),
        ("sort-keys", 1, "dict(sorted({x}.items()))", "by key",
         "sort the entries by key | order the dictionary by its keys | put the entries in alphabetical order"),
    ),
    *_table(
        "scores", "numbers",
        ("values", 1, "list({x}.values())", "values",
         "list the values | collect all values | take the values as a list"),
        ("sorted-values", 0, "sorted({x}.values())", "sorted values",
         "list the values in ascending order | collect all values from smallest to largest | take the values, sorted"),
    ),
    *_table(
        "scores", "words",
        ("keys", 1, "list({x})", "keys",
         "list the keys | collect all keys | take the keys as a list"),
        ("keys-by-value", 0, "sorted({x}, key={x}.get)", "keys by value",
         "list the keys by ascending value | order the keys by their values | collect all keys, smallest value first"),
    ),
    *_table(
        "scores", "text",
        ("best-key", 0, 'max({x}, key={x}.get, default="")', "key of the maximum",
         "find the key with the largest value, or '' if there is none | "
         "pick the first key of highest value ('' if empty) | "
         "give the key that has the most, '' for no entries"),
    ),
    *_table(
        "scores", "total",
        ("sum-values", 1, "sum({x}.values())", "sum of values",
         "add up the values | compute the sum of all values | give the total of the values"),
        ("max-value", 0, "max({x}.values(), default=0)", "largest value, or 0",
         "find the largest value, or 0 if there is none | give the maximum of the values (0 if empty) | "
         "pick the greatest value, 0 for no entries"),
        ("count-entries", 1, "len({x})", "number of entries",
         "count the entries | compute how many entries there are | give the size of the dictionary"),
    ),
]  # fmt: skip

OPERATIONS = {each.name: each for each in _ALL}
assert len(OPERATIONS) == len(_ALL)
