"""What the documents name is there."""

import re

import pytest

from support import REPOSITORY

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
ROOTS = ("pyztun", "csrc", "tests", "docs", "scripts", "bench", "examples", "bin")
NAMED = re.compile(rf"`((?:{'|'.join(ROOTS)})/[\w./-]+)`")
LINKED = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(document: object) -> None:
    path = REPOSITORY / str(document)
    text = path.read_text()
    named = [REPOSITORY / name.rstrip("/") for name in NAMED.findall(text)]
    linked = [path.parent / name for name in LINKED.findall(text)]
    missing = [str(each.relative_to(REPOSITORY)) for each in (*named, *linked) if not each.exists()]
    assert missing == []
