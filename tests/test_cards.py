"""Whose rates are in use: this card's own where it was measured, and no damage that breaks a call."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import patternc as pc
from patternc import cards, folder
from patternc.cards import card, committed, in_use, path_of, save
from patternc.rates import Card, Config

CARD = "Some GPU (40GB)"  # of conftest.on_a_card


def own(**changes) -> Card:
    return replace(committed(), name=CARD, **changes)


def test_a_card_that_was_never_measured_takes_the_committed_table(on_a_card):
    assert card() is committed() and in_use().path is None


def test_a_card_that_was_measured_takes_its_own(on_a_card):
    path = save(own(processors=108))
    in_use.cache_clear()
    assert path == on_a_card / "rates-some-gpu-40gb.json" and in_use().path == path
    assert card() == own(processors=108) and not in_use().outdated
    assert "(Some GPU (40GB))\n          by rates of this card's own.\n" in str(pc.compile(pc.causal).explain(256))


def test_other_cards_tables_are_not_asked(on_a_card):
    save(replace(committed(), name="Other GPU"))
    in_use.cache_clear()
    assert card() is committed()


def test_no_device_is_asked_where_no_card_was_measured(on_a_card, monkeypatch):
    monkeypatch.setattr(cards, "device_name", lambda: pytest.fail("this starts CUDA"))
    assert card() is committed()


def test_a_table_of_another_triton_is_used_and_said(on_a_card):
    save(own(versions={"torch": "2.9.0", "triton": "3.5.1"}))
    in_use.cache_clear()
    sentence = f"measured with Triton 3.5.1, and this is Triton {cards.triton_version()}: `patternc tune` measures again."
    assert sentence in in_use().outdated and sentence in str(pc.compile(pc.causal).explain(256))


DAMAGE = {
    "empty": "", "no JSON": "{", "a list": "[]", "deep": "[" * 100000, "no rates": '{"rates": []}',
    "another card's": replace(committed(), name="Other GPU").json(),
    "no tile": own().json().replace("[64, 64, 4, 2]", "[60, 64, 4, 2]"), "too large": own().json().replace("[64, 64, 4, 2]", "[4096, 64, 4, 2]"),
    "a half tile": own().json().replace("[64, 64, 4, 2]", "[64.0, 64, 4, 2]"), "too short": own().json().replace("[64, 64, 4, 2]", "[64, 64]"),
    "negative": own().json().replace('"launch": 3.95', '"launch": -1'), "not finite": own().json().replace('"launch": 3.95', '"launch": NaN'),
    "huge": own().json().replace('"launch": 3.95', '"launch": 1' + "0" * 400), "words": own().json().replace('"launch": 3.95', '"launch": "fast"'),
    "no processors": own(processors=0).json(), "text widths": own().json().replace('"width": 64', '"width": "64"'),
    "one kernel": replace(own(), rates={key: found for key, found in committed().rates.items() if key[0] == "forward"}).json(),
}  # fmt: skip


@pytest.mark.parametrize("text", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_table_is_ignored_with_one_warning(on_a_card, text):
    path = path_of(CARD)
    path.write_text(text)
    with pytest.warns(UserWarning, match=r"rates-some-gpu-40gb.json cannot be used.*run `patternc tune`.*or delete it") as warned:
        assert card() is committed() and card() is committed()
    assert len(warned) == 1


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["no text", "a folder"])
def test_what_is_no_file_of_text_is_ignored_too(on_a_card, content):
    path = path_of(CARD)
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.warns(UserWarning, match="cannot be used"):
        assert card() is committed()


def test_a_call_with_a_damaged_table_is_right(on_a_card):
    path_of(CARD).write_text("damaged")
    with pytest.warns(UserWarning, match="cannot be used"):
        assert pc.verify(pc.parse("causal & window(8)"), backend="triton", sizes=[(40, 40)], quiet=True).ok


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv(folder.ENVIRONMENT, str(blocker / "cache"))
    in_use.cache_clear()
    assert card() is committed()  # nothing to read, nothing to warn of
    with pytest.warns(UserWarning, match="cannot be written .*set PATTERNC_CACHE_DIR"):
        assert Card.read(save(own()).read_text()) == own()


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    folder.write(path, b"old")
    monkeypatch.setattr(folder.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        folder.write(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_configurations_that_cannot_be():
    assert Config(64, 64, 4, 2).possible
    assert not any(Config(*x).possible for x in ((0, 64, 4, 2), (64, 48, 4, 2), (64, 64, 3, 2), (64, 64, 4, 0), (64, 64, 4, 2.0), (512, 64, 4, 2)))
    assert json.loads(committed().json())["versions"]["triton"]
