"""Pictures: the arrays behind them, files, text for terminals, limits, and the missing extra."""

import sys

import numpy as np
import pytest

import patternc as pc
from patternc.errors import ArgError, MissingExtraError, OperandError, ParameterError
from patternc.plotting import COLOURS, _image, picture
from patternc.terminal import text

P = pc.causal & (pc.window(20) | pc.sink(3))
ATTENTION = pc.causal & (pc.window(20) + pc.linear_tail)


def test_arrays_are_the_mask():
    shown = picture(P, 100, tile=16)
    dense = P.dense(100).numpy()[0, 0]
    assert (shown.pairs == dense).all() and shown.kinds.shape == (7, 7)
    for i in range(7):
        for j in range(7):
            cell = dense[i * 16 : i * 16 + 16, j * 16 : j * 16 + 16]
            assert shown.kinds[i, j] == (2 if cell.all() else 1 if cell.any() else 0)


def test_heads_rows_and_args():
    p = pc.per_head(pc.causal, pc.window(pc.arg("w")))
    for head in (0, 1):
        assert (picture(p, 40, head=head, w=5).pairs == p.dense(40, heads=2, w=5).numpy()[0, head]).all()
    ids = np.array([[0] * 20 + [1] * 20, [0] * 30 + [1] * 10])
    p = pc.documents(pc.arg("ids"))
    assert (picture(p, 40, row=1, batch=2, ids=ids).pairs == p.dense(40, batch=2, ids=ids).numpy()[1, 0]).all()
    shown = picture(pc.causal, 10, 40)
    assert shown.q_start == 30 and (shown.pairs == pc.causal.dense(10, 40).numpy()[0, 0]).all()


def test_term():
    shown = picture(ATTENTION, 100, tile=16)
    assert (shown.term == (pc.causal - pc.window(20)).dense(100).numpy()[0, 0]).all()
    assert picture(ATTENTION, 4096).term.shape == picture(ATTENTION, 4096).kinds.shape


def test_long_sequences_have_no_pairs():
    shown = picture(P, 1 << 20)
    assert shown.pairs is None and max(shown.kinds.shape) <= 64
    assert _image(lambda c: (0.0, 0.0, 0.0), shown).shape == (*shown.kinds.shape, 3)


def test_large_tiles_are_put_together(monkeypatch):
    """The same picture as from tiles of that size."""
    from patternc import plotting

    for p in (P, pc.window(300), pc.causal, pc.dilate(2), pc.full, pc.causal & pc.window(40) | pc.cols([7]), ATTENTION):
        for sizes in ((640,), (700,), (100, 1000)):
            whole = picture(p, *sizes, tile=(64, 128))
            monkeypatch.setattr(plotting, "FINEST", 16)
            parts = picture(p, *sizes, tile=(64, 128))
            monkeypatch.undo()
            assert (whole.kinds == parts.kinds).all()
            assert whole.term is None or (whole.term == parts.term).all()


def test_image_colours():
    def rgb(colour):
        return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))

    image = _image(rgb, picture(P, 100, tile=16))
    assert image.shape == (100, 100, 3)
    assert np.allclose(image[0, 99], rgb(COLOURS["empty"][0]))
    assert np.allclose(image[0, 0], rgb(COLOURS["partial"][1])) and np.allclose(image[0, 1], rgb(COLOURS["partial"][0]))


@pytest.mark.parametrize("ending", ["png", "svg"])
@pytest.mark.parametrize("p, n", [(P, 100), (P, 5000), (ATTENTION, 200), ("causal & block(16)", 64)])
def test_files(tmp_path, p, n, ending):
    path = tmp_path / f"mask.{ending}"
    ax = pc.plot(p, n, path=path)
    assert path.stat().st_size > 3000
    assert path.read_bytes()[:4] == (b"\x89PNG" if ending == "png" else b"<?xm")
    assert ax.get_xlabel() == "key" and ax.get_legend() is not None


def test_axes():
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert pc.plot(P, 50, ax=ax) is ax and ax.images


def test_text():
    lines = text(pc.causal, 64, tile=16).plain.splitlines()
    assert lines[:4] == ["▒▒······", "██▒▒····", "████▒▒··", "██████▒▒"]
    assert lines[4:] == ["64 queries (down), 64 keys; tiles of 16 x 16", "·· 6 empty  ▒▒ 4 partial  ██ 6 full  "]
    assert max(len(line) for line in text(P, 1 << 20).plain.splitlines()) <= 79
    assert "░░" in text(ATTENTION, 256).plain


def test_errors(tmp_path):
    with pytest.raises(ParameterError, match="more than the 1024 tiles"):
        pc.plot(P, 1 << 20, tile=16)
    with pytest.raises(ParameterError, match="too many for a terminal"):
        text(P, 4096, tile=16)
    with pytest.raises(ParameterError, match="`tile` is a positive integer"):
        pc.plot(P, 100, tile=0)
    with pytest.raises(ParameterError, match="`head` is 3, and there are 2"):
        pc.plot(P, 100, head=3, heads=2)
    for p in (pc.causal, "window(8)", ATTENTION):
        with pytest.raises(ParameterError, match="`head` is 3, and there is 1\nfix: use 0 to 0, or say how many there are: `heads=4`"):
            pc.plot(p, 100, head=3)
    with pytest.raises(ParameterError, match="`head` is 2, and there are 2"):
        pc.plot(pc.per_head(pc.causal, pc.full), 100, head=2)
    assert pc.plot("heads([2]) & causal", 100, head=3) and pc.plot(pc.causal, 100, head=3, heads=4)
    with pytest.raises(ParameterError, match="saved as .png, .svg or .pdf"):
        pc.plot(P, 100, path=tmp_path / "mask.bmp")
    with pytest.raises(ArgError, match="unknown arg `w`"):
        pc.plot(P, 100, w=3)
    with pytest.raises(ArgError, match="missing arg `w`"):
        pc.plot(pc.window(pc.arg("w")), 100)
    with pytest.raises(OperandError, match="plot draws a pattern"):
        pc.plot(pc.linear_tail, 100)


def test_without_matplotlib(monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "patternc\[viz\]"'):
        pc.plot(P, 100)
