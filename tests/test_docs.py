"""Every python block of README.md and docs/*.md runs: sessions (`>>>`) as doctests, a block before a `text` block must print or raise it."""

import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

from patternc.errors import PatterncError

ROOT = Path(__file__).parent.parent
PAGES = sorted(p for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")] if "```python" in p.read_text(encoding="utf-8"))
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_code_blocks(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a page may write pictures
    text = page.read_text(encoding="utf-8")
    blocks = [(m.group(1), m.group(2), text[: m.start()].count("\n") + 2) for m in BLOCK.finditer(text)]
    names: dict = {"__name__": "docs"}
    for n, (language, code, line) in enumerate(blocks):
        if language != "python":
            continue
        if ">>>" in code:
            session(code, names, page, line)
            continue
        wanted = blocks[n + 1][1] if n + 1 < len(blocks) and blocks[n + 1][0] == "text" else None
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
        except PatterncError as error:
            assert wanted is not None, f"{page.name}:{line}: {error}"
            out.write(str(error) + "\n")
        assert wanted is None or out.getvalue() == wanted, f"{page.name}:{line}"


def session(code, names, page, line):
    test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
    failures = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=failures.write, clear_globs=False)
    names.update(test.globs)
    assert not runner.failures, failures.getvalue()


def test_the_annotated_kernel_is_what_is_generated():
    import textwrap

    import patternc as pc

    source = pc.compile(pc.causal & (pc.window(512) | pc.sink(4))).source()
    flat = "\n".join(line.strip() for line in source.splitlines())
    quoted = [m.group(2) for m in BLOCK.finditer((ROOT / "docs" / "kernel.md").read_text(encoding="utf-8")) if m.group(1) == "triton"]
    assert len(quoted) >= 6
    for block in quoted:
        assert "\n".join(line.strip() for line in textwrap.dedent(block).splitlines()) in flat, block


def test_the_page_of_the_zoo_is_up_to_date():
    from patternc.zoo.page import files

    made = files()
    for name, text in made.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, f"{name}: run `patternc zoo --write docs`"
    assert {f"zoo/{path.name}" for path in (ROOT / "docs" / "zoo").iterdir()} == {*made} - {"zoo.md"}
