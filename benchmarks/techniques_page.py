"""What `techniques.py` shows: a line for each technique, then one for each method on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

#: A search that reaches less than this share of the authors' ratio is below them.
BELOW = 0.98

#: What the search of a shipped space is called, and that of one with the authors' step in it.
SHIPPED, THEIRS = "search", "search, their step in its space"

#: What JPEG 2000 inside Blosc2 is called, by the codec.
IN_BLOSC2 = {"j2k": "j2k in Blosc2", "htj2k": "htj2k in Blosc2"}


@dataclass
class Line:
    """What one method makes of the frames of a technique."""

    method: str
    """The authors' setting, a search, or lossless."""
    config: str = ""
    """Steps and compression in a line."""
    ratio: float = 0.0
    """Bytes of the frames as they were / bytes stored; 0 where there is none."""
    own: float = 0.0
    """The same in the file of a round trip's codec itself; 0 where there is none."""
    encode_mb_s: float = 0.0
    """MB of reduced frames a second on one core, steps included."""
    decode_mb_s: float = 0.0
    """MB of reduced frames a second on one core."""
    quality: dict[str, float] = field(default_factory=dict)
    """Each quality of the worst of all frames."""
    figures: dict[str, Sequence[float]] = field(default_factory=dict)
    """Each number of the analyses, and the ends of its interval."""
    truth: float | None = None
    """Distance to the truth after over that before; None where nobody knows it."""
    seconds: float = 0.0
    """What the search took."""
    broken: str = ""
    """Limits that do not hold over all frames."""
    note: str = ""
    """Why there is none."""


@dataclass
class Row:
    """A technique on its frames."""

    name: str
    """What it is."""
    data: str
    """Of what frames."""
    published: str
    """What its authors reach."""
    why: str = ""
    """Why ours is another figure."""
    times: float = 1.0
    """Bytes of the frames as they were / as reduced."""
    lines: list[Line] = field(default_factory=list)
    """Lossless first, then the authors' setting, then searches, then JPEG 2000 inside Blosc2."""
    seconds: float = 0.0
    """What all of it took."""
    failed: str = ""
    """Why there are no lines."""

    @property
    def text(self) -> str:
        """Technique and frames."""
        return f"{self.name}: {self.data}"

    def of(self, method: str) -> Line | None:
        """The line of a method that has a ratio; None where there is none."""
        return next((line for line in self.lines if line.method == method and line.ratio), None)

    @property
    def authors(self) -> Line:
        """That of the authors' setting."""
        return next(line for line in self.lines if line.method == "authors' setting")

    @property
    def lossless(self) -> Line:
        """The best lossless one of the frames that steps are done to."""
        return [line for line in self.lines if line.method.startswith("best lossless")][-1]

    def reaches(self, method: str, ratio: float) -> bool:
        """Whether a search reaches a ratio at no worse quality."""
        line = self.of(method)
        return line is not None and not line.broken and line.ratio >= BELOW * ratio

    @property
    def best(self) -> float:
        """The best ratio of the searches that keep the limits; 0 where none does."""
        return max((line.ratio for m in (SHIPPED, THEIRS) if (line := self.of(m)) and not line.broken), default=0.0)


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each technique."""
    yield (
        "| technique | frames | published | lossless | by reduction | authors' setting | its codec's own file"
        " | search | of theirs | their step added | JPEG 2000 in Blosc2 |"
    )
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        authors, lossless = row.authors, row.lossless
        part = f"{lossless.ratio / row.lines[0].ratio:.2f}" if row.times > 1 else ""
        searched, added = row.of(SHIPPED), row.of(THEIRS)
        yield (
            f"| {row.name} | {row.data} | {row.published} | {row.lines[0].ratio:.2f} | {part}"
            f" | {_ratio(authors, lossless)} | {f'{authors.own:.1f}' if authors.own else ''}"
            f" | {_ratio(searched, lossless)} | {searched.ratio / authors.ratio if searched else 0:.0%}"
            f" | {_ratio(added, lossless) if added else ''} | {_in_blosc2(row)} |"
        )


def _ratio(line: Line | None, lossless: Line) -> str:
    if line is None:
        return "none"
    return f"{line.ratio:.2f} ({line.ratio / lossless.ratio:.2f}){', breaks a limit' if line.broken else ''}"


def _in_blosc2(row: Row) -> str:
    """The codecs inside Blosc2 that were tried, with their ratios."""
    tried = {codec: line for line in row.lines for codec, method in IN_BLOSC2.items() if line.method == method}
    texts = (
        f"{line.ratio:.2f}{' (breaks a limit)' if line.broken else ''}" if line.ratio else "none"
        for line in tried.values()
    )
    return ", ".join(f"{codec} {text}" for codec, text in zip(tried, texts, strict=True))


def verdict(rows: Sequence[Row]) -> Iterator[str]:
    """Who is better at equal quality, in sentences."""
    alone = [row for row in rows if not row.reaches(SHIPPED, row.authors.ratio)]
    added = [row for row in alone if not row.reaches(THEIRS, row.authors.ratio)]
    own = [row for row in rows if row.authors.own > row.best / BELOW]
    above = [row for row in rows if row.best > row.authors.ratio / BELOW]
    aim = "is met" if not alone else "is met only with their step among the choices" if not added else "is not met"
    yield (
        f"The aim, that none of {len(rows)} settings chosen by hand beats the search by more than 2 % at equal"
        f" quality, **{aim}**, as far as files go that any reader opens; for the codecs' own files see below. The"
        f" search is above {len(above)} of them by more than 2 %. In the shipped spaces, which hold the techniques of"
        f" their field, it is below {len(alone)}; with the authors' very setting in the space, below {len(added)}."
    )
    for title, method, below in (("without their step", SHIPPED, alone), ("with their step too", THEIRS, added)):
        if below:
            yield from ("", f"Below {title}:", "")
        for row in below:
            line = row.of(method)
            got = f"{line.ratio:.2f} for {row.authors.ratio:.2f}" if line else "nothing found"
            broken = f", which breaks {line.broken}" if line and line.broken else ""
            yield f"- {row.text}: {got}{broken}."
    if own:
        yield ""
        yield (
            "A round trip stores decoded pixels losslessly, for any reader. The codec's own file, which needs its"
            " decoder, is smaller than ours at the same quality in these rows, so that the aim is missed there:"
        )
        yield ""
        for row in own:
            inside = f"; in Blosc2: {text}" if (text := _in_blosc2(row)) else ""
            yield f"- {row.text}: {row.authors.own:.1f}, ours {row.best:.2f}{inside}."
        yield ""
        yield (
            "*In Blosc2* is JPEG 2000 as a codec that loses pixels, for readers that have the plug-in, of 16-bit"
            " pixels: at the authors' ratio, or, where they took another codec, at the highest up to 25.5 that keeps"
            " all limits. htj2k keeps 12 bits, whatever the ratio, which moves means. No search takes it: what is"
            " encoded must come back, byte for byte, as quality is promised of steps; and a codec that loses pixels"
            " also changes those that do not count, so that gaps and saturated pixels are no longer what they were."
            " Neither column pays for a mask that would keep them."
        )


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each method on each technique."""
    yield (
        "| technique, frames | method | ratio | over lossless | encode, decode MB/s | dose cost | max, sigma"
        " | bias, sigma | nrmse | to the truth | analysis | s | what |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---|"
    for row in rows:
        for number, line in enumerate(row.lines):
            first = "" if number else f"**{row.text}**"
            if not line.ratio:
                yield f"| {first} | {line.method} |{' |' * 10} {line.note} |"
                continue
            over = line.ratio / (row.lines[0] if line is row.lines[0] else row.lossless).ratio
            names = ("dose_cost", "max_error_sigma", "bias_sigma", "nrmse_range")
            quality = " | ".join(f"{line.quality[name]:.2g}" if name in line.quality else "" for name in names)
            truth = f"{line.truth:.2f}" if line.truth is not None else ""
            figures = ", ".join(f"{name.partition('.')[2]} {v[0]:.3g}" for name, v in line.figures.items())
            broken = f"; breaks {line.broken}" if line.broken else ""
            yield (
                f"| {first} | {line.method} | {line.ratio:.2f} | {over:.2f} | {line.encode_mb_s:,.0f},"
                f" {line.decode_mb_s:,.0f} | {quality} | {truth} | {figures}"
                f" | {line.seconds:.0f} | `{line.config}`{broken} |"
            )


def page(rows: Sequence[Row], budget: str) -> Iterator[str]:
    """The result as a page."""
    whole = [row for row in rows if not row.failed]
    yield from ("# The field's techniques, at their authors' settings and as searched for", "")
    yield (
        f"`python benchmarks/techniques.py --budget {budget}`. Ratio: bytes of the frames as the detector gave"
        " them / bytes stored, reductions included; in brackets over the best lossless one of the same frames,"
        " reduced alike. Against 16-bit raw, ratios of 32-bit frames halve. *By reduction*: what binning, summing"
        " or scaling alone does to the best lossless ratio. *Authors' setting*: with the codec that suits it best,"
        " pixels stored losslessly so that any reader opens them. *Its codec's own file*: what JPEG 2000,"
        " HCompress, ZFP or SZ3 would take themselves. *Search*: the best ratio where dose cost, largest error,"
        " bias, NRMSE and the numbers of the analysis are no worse than theirs, each of the worst frame (of an"
        f" analysis with an interval: than the far end of theirs), but for 2 %; {budget} configurations, in the"
        " shipped space of the technique as it is. *Their step added*: once more with their setting among the choices,"
        " where the search ends below it. *JPEG 2000 in Blosc2*: by the plug-ins, where the codec's own file is"
        " smaller than what was found. Where authors name no parameter it is picked by hand, as the bounds of ZFP and"
        " SZ3, the levels around peaks and the ends of windows."
    )
    yield ""
    yield from summary(whole)
    yield ""
    yield from verdict(whole)
    if reasons := [row for row in whole if row.why]:
        yield from ("", "## Where figures are not the published ones, and why", "")
        for why in dict.fromkeys(row.why for row in reasons):
            names = "; ".join(dict.fromkeys(row.text for row in reasons if row.why == why))
            yield f"- {names}. {why}"
    for row in rows:
        if row.failed:
            yield from ("", f"Left out, as it failed: {row.text}: {row.failed}")
    yield from ("", "## All of it", "")
    yield (
        "Qualities are of the worst of all frames. Speeds are per second of the thread's own time, of the reduced"
        " frames. *To the truth*: root mean square distance from frames simulated without noise, after over before;"
        " below 1 a step removes noise, sqrt(1 + dose cost) is what rounding does. *s*: of the search; the first one of"
        " all also trains what leads searches."
    )
    yield ""
    yield from table(whole)
