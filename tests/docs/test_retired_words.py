"""The prose contains no retired words.

Retired words are metaphors for code and constructions that are not idiomatic English.
CONTRIBUTING.md says how to write instead.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support_pages import DOCS, ROOT, name_of

#: Words that can only follow "a training" if it is used as a noun.
_AFTER_NOUN = (
    r"(?=[.,:;?!')]|\s(?:that|which|whose|is|was|has|had|can|could|may|might|must|would|will|should|"
    r"goes|went|ends?|ended|starts?|started|begins?|begun|takes?|needs?|does|stops?|stopped|failed|"
    r"of|on|in|to|from|with|without|and|or|but|as|at|by|for|after|before|until|while|where|when|if)\b)"
)

#: Patterns and what to write instead. Case is ignored.
RETIRED = {
    # Metaphors.
    r"\bhouses?\b": "library, package",
    r"(?<!\.)\bfloors?\b": "layer; lowest supported version",
    r"\brooms\b|\b(?:this|that|its|own|each) room\b": "module, package",
    r"\bdoors?\b": "before anything is changed",
    r"\blaws?\b": "rule",
    r"witness": "audit",
    r"judg(?:e|ed|ement|ing)": "predict, compare",
    r"\ba look\b": "inspect, check",
    # Verbs.
    r"\b(?:takes?|took|taken|taking) up\b(?! to\b)": "load, restore",
    r"\bput(?:s|ting)?[ _]back\b": "restore",
    r"\b(?:goes?|going|went|gone|go) on\b": "continue, resume",
    r"\b(?:goes|going|went|gone|go) past\b": "bypass",
    r"\bplay(?:s|ed)? along\b": "support, work with",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bdepart(?:s|ed|ures?)?\b": "differ, mismatch",
    r"\bmakes? of (?:it|them|a|an|the|its)\b|\bmade of (?:it|them)\b": "produce from",
    r"\bstands?\b(?! for| in for| out)": "be, appear",
    r"\bgiv(?:es?|ing|en) back\b|\bgave back\b": "undo, restore, return",
    r"\b(?:is|are|be|was|were) (?:not )?taken for\b": "be mistaken for, be treated as",
    r"\bheld against\b": "compare with",
    r"\bl(?:ies?|ying) (?:in|at|on|below|above|beside|beyond|there|here)\b": "be, be stored",
    # Words.
    r"\banew\b": "again, from scratch",
    r"\bwhole or not at all\b": "atomically",
    r"\b(?:newest|last|written|stays) whole\b": "complete",
    r"\bbeside\b": "next to, together with, alongside",
    r"(?:^|[.:;] )besides,": "also",
    r"\b(?:a|an|the|its|this|whose) former\b": "previous, existing",
    r"\bothers than\b": "other than",
    r"\bso many(?:-th\b|\b(?! that\b| \w+ that\b))": "this many",
    r"\b(?:some|any|no)thing else than\b": "anything other than",
    r"\bbut for (?:the|a|an|one|what|lists)\b": "except for",
    r"\b(?:is|are|was|were) as (?:it was|they were)\b": "unchanged",
    r"\b(?:into|as) shares\b|\bshares? of (?:samples|images|(?:the|its) (?:outputs|spread))\b": (
        "probability, fraction"
    ),
    r"\bof torch's\b|\b(?:one|member|preset|object)s? of torchvision's\b": "PyTorch's",
    # Constructions.
    r"\b(?:a|one|each|every|another|this|the same|whole) training" + _AFTER_NOUN: "a training run",
    r"\btrainings\b": "training runs",
    r'(?:^|[.:;|] |""")who (?!is\b|was\b|are\b|has\b)\w+s\b': "anyone who, if you",
    r"\b(?:one|a) (?:line|row|page|file|value|weight|name|number|text) an? (?:epoch|step|class|"
    r"sample|batch|tensor|module|question|image|layer|pixel|output|row)\b": "one ... per",
    r"\b(?:two|three|four|five|six|seven|eight|nine|ten|\d+) \w+s an? (?:byte|epoch|step|class|"
    r"sample|batch|image|pixel|row)\b": "... per",
    r"\bone an? (?:epoch|step|class|sample|batch|tensor|module|question|image)\b": "one per",
    r"(?<!there )\b(?:is|are|was|were) no (?:plain )?(?:module|tensor|pair|mapping|string|function|"
    r"class|list|tuple|name|file|folder|path|text|number|dict|Linear|nn\.Module|weights? file|"
    r"error|statement|measurement|batch|model|image|loss|metric|dataset|checkpoint|obstacle|failure|"
    r"agreement|proof|certificate|multiple|overflow|path)s?\b": "is not",
    r", but (?:it )?(?:is|are|has|have|was|were|got|holds?|gave) [{`]": ", got X",
    r", so that\b": "so; a new sentence",
    r'(?:^|\. |""")Where [^.,]{3,60}, (?:it|its|the|an?|this|these|they|one)\b': "if",
    r"\balso where\b": "even if",
    r"\bwhere (?:there (?:is|are) (?:one|none|any)|(?:that|it) is so)\b|, if so\b": "if any",
    r"\bmakes? no sense\b": "is invalid",
}

PATTERNS = {re.compile(pattern, re.IGNORECASE): use for pattern, use in RETIRED.items()}

FILES = [
    *sorted((ROOT / "src").rglob("*.py")),
    *(
        file
        for ending in ("md", "rst", "py", "css")
        for file in sorted(DOCS.rglob(f"*.{ending}"))
        if file.relative_to(DOCS).parts[0] not in ("_build", "tutorials")
    ),
    *sorted((ROOT / "benchmarks").rglob("*.py")),
    *sorted((ROOT / "examples").glob("*.py")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md")),
    ROOT / "CHANGELOG.md",
]


def retired_in(text: str) -> list[str]:
    """Return the retired phrases in a text, each with the words around it and its replacement."""
    # Sentences continue across the lines of a comment and the parts of a string.
    text = re.sub(r"""(["'])[ \t]*\n[ \t]*[rf]{0,2}\1""", "", text)
    text = re.sub(r"\s*\n[ \t]*(?:#:?[ \t])?\s*", " ", text)
    return [
        f"...{text[max(0, match.start() - 40) : match.end() + 20]}... (write: {use})"
        for pattern, use in PATTERNS.items()
        for match in pattern.finditer(text)
    ]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_contains_no_retired_word(file: Path) -> None:
    """A retired word that returns is reported with its replacement."""
    assert retired_in(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "`lr` must be at least 0, but is {lr}.",
        'the training goes "\n    f"on',
        "A training that\n    # was stopped",
        "one row a sample",
        "It is no module.",
        "Who resumes must wait",
        "It is taken for a constant.",
        "at most so many bytes",
        "seven bits a byte",
        "Where nothing else is known, the model is traced.",
    ],
)
def test_a_retired_phrase_is_found(text: str) -> None:
    """Phrases are found across the lines of a comment and the parts of a string."""
    assert retired_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "a training run",
        "There is no module.",
        "math.floor(x)",
        "takes up to four bytes",
        "`*` stands for any name",
        "other than",
        "mistaken for a constant",
        "There are so many that they are not listed.",
        "Where to run: `cpu` or an accelerator.",
    ],
)
def test_ordinary_english_is_not_reported(text: str) -> None:
    """Standard terms that resemble a retired phrase are allowed."""
    assert retired_in(text) == []
