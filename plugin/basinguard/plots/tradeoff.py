"""The products that were tried, as a picture and as a table: what each copies, and what it keeps of what was taught.

Colours are Okabe and Ito's; what is searched, tested and proven is told apart by marker as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..calibration.candidate import ProductCandidate, of_phase
from ..calibration.knobs import knobs_text
from ..calibration.record_builder import Certificate
from ..core.estimate import Estimate
from ..core.record import Transfer
from ..similarity.taught import taught_difference
from .style import BLACK, BLUE, GREEN, GREY, LIMIT, VERMILLION, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Place = Callable[[ProductCandidate], Estimate | None]
COLUMNS = """risk: share of samples of training captions that copy a training image; p: of "it is above alpha"
taught: what these samples show of what was taught, net of copies: 0 is the base model, 1 true images
alignment: agreement of image and caption, higher is better; UNet/img: network evaluations of one image
* is what ships: of the proven ones the most taught, then the best aligned, then the cheapest"""

UNPLACED = """neither what was taught nor the agreement of image and caption could be measured,
so there is nothing to set the risk against; calibration.json holds it"""


def products_figure(certificate: Certificate) -> Figure:
    """Risk against what is left of what was taught, of everything tried; without that ruler, against alignment."""
    tried, record = certificate.tried, certificate.record
    by_taught = any(c.left for c in tried)
    place: Place = (lambda c: c.left) if by_taught else (lambda c: c.alignment)
    goal = "what is left of what was taught (0 = base model, 1 = true images)"
    figure, axes = canvas(
        goal if by_taught else "agreement of image and caption", "share of samples that copy", (6.4, 4.4)
    )
    _cloud(axes, of_phase(tried, "search"), place)
    labels = Labels([x.value for c in tried if (x := place(c)) is not None])
    others = "rules and strengths by timestep" if any(c.product.strength_schedule for c in tried) else "rules"
    for kind, colour in ((True, BLUE), (False, GREEN)):
        chain = [c for c in of_phase(tried, "proof") if c.product.plain == kind]
        chain.sort(key=lambda c: c is not certificate.shipped)  # whose label finds room first
        _chain(axes, chain, place, colour, labels, "plain CFG at a strength and scale" if kind else others)
    if (plain := place(certificate.plain)) is not None:
        _cross(axes, plain, certificate.plain.risk, VERMILLION, "plain CFG without a guard")
    if (chosen := place(certificate.shipped)) is not None and certificate.shipped.proven:
        axes.plot(chosen.value, certificate.shipped.risk.value, "o", markersize=14, markerfacecolor="none",
                  markeredgecolor=BLACK, label="what ships")  # fmt: skip
    axes.axhline(record.alpha, color=VERMILLION, linestyle=LIMIT, label=f"promised: at most {record.alpha:.0%}")
    axes.set(ylim=(-0.03, 1.03))
    if all(place(c) is None for c in (certificate.plain, *tried)):
        axes.text(0.5, 0.4, UNPLACED, transform=axes.transAxes, ha="center", va="center", fontsize=9)
        axes.set_xticks([])
    figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    axes.set_title("What each product copies, and what it keeps; filled = proven", loc="left", fontsize=11)
    return figure


class Labels:
    """Where there is room for a label: none is written over another; the table names every product.

    Args:
        x: where the points lie.
    """

    WIDE, HIGH = 0.5, 0.05  # shares of the picture that a label takes

    def __init__(self, x: Sequence[float]) -> None:
        self.width = max(x, default=1.0) - min(x, default=0.0)
        self.taken: list[tuple[float, float]] = []

    def free(self, x: float, y: float) -> bool:
        """Whether a label fits beside a point; it is taken then.

        Example:
            >>> labels = Labels([0.0, 1.0])
            >>> labels.free(0.1, 0.5), labels.free(0.2, 0.52), labels.free(0.2, 0.9)
            (True, False, True)
        """
        room = all(abs(x - a) > self.WIDE * self.width or abs(y - b) > self.HIGH for a, b in self.taken)
        self.taken += [(x, y)] if room else []
        return room


def _cloud(axes: Axes, searched: Sequence[ProductCandidate], place: Place) -> None:
    spots = [(x.value, c.risk.value, c.product.strength) for c in searched if (x := place(c)) is not None]
    shares = [(x, y) for x, y, strength in spots if strength > 0]
    axes.plot(*zip(*shares, strict=True), ".", color=GREY, alpha=0.6, label="searched, few samples") if shares else None
    base = [(x, y) for x, y, strength in spots if strength == 0]
    axes.plot(*zip(*base, strict=True), "*", color=BLACK, markersize=11, label="base model") if base else None


def _chain(
    axes: Axes, chain: Sequence[ProductCandidate], place: Place, colour: str, labels: Labels, label: str
) -> None:
    for candidate in chain:
        x = place(candidate)
        if x is not None:
            face = colour if candidate.proven else "white"
            _cross(axes, x, candidate.risk, colour, label, marker="o", face=face)
            if labels.free(x.value, candidate.risk.value):
                axes.annotate(str(candidate.product), (x.value, candidate.risk.value), xytext=(6, 5),
                              textcoords="offset points", fontsize=6)  # fmt: skip
            label = ""


def _cross(axes: Axes, x: Estimate, y: Estimate, colour: str, label: str, *, marker: str = "X", face: str = "") -> None:
    axes.errorbar(
        x.value, y.value, xerr=[[x.value - x.low], [x.high - x.value]], yerr=[[y.value - y.low], [y.high - y.value]],
        color=colour, marker=marker, markersize=8 if marker == "X" else 5, markerfacecolor=face or colour, capsize=2,
        elinewidth=0.8, linestyle="none", label=label,
    )  # fmt: skip


def products_text(certificate: Certificate) -> str:
    """Base model, plain CFG and every product that was tested, one line each, for a terminal."""
    tried = certificate.tried
    searched, tested = of_phase(tried, "search"), of_phase(tried, "proof")
    base = [c for c in searched if c.product.strength == 0]
    rows = [("base model", c) for c in base] + [("plain CFG without a guard", certificate.plain)]
    rows += [(str(c.product), c) for c in tested if c is not certificate.plain or c.proven]
    width = max(len(name) for name, _ in rows)
    head = f"  {'product':{width}} {'risk [95% interval]':24} {'p':>7} {'taught [95% interval]':24} {'alignment':>9}"
    lines = [f"{head} {'UNet/img':>8}", *(_line(name, c, width, c is certificate.shipped) for name, c in rows)]
    few = searched[0].risk.n if searched else 0
    lines += [f"{len(searched)} products were searched on {few} samples each; {certificate.evaluations} evaluations"]
    record = certificate.record
    knobs = knobs_text(tried, record.alpha, record.sampler.scale)
    lines += [*([knobs] if knobs else []), COLUMNS, *heldout_lines(certificate), *subject_lines(certificate)]
    return "\n".join(lines)


def subject_lines(certificate: Certificate) -> list[str]:
    """What ships, of each subject of a set of several, the worst first; none where there is one."""
    values = {name: taught.value or taught for name, taught in certificate.shipped.subjects.items()}
    order = sorted(values, key=lambda name: v.value if isinstance(v := values[name], Estimate) else -math.inf)
    lines = [f"  {name}: {values[name]}" for name in order]
    return [f"taught by subject, as the captions name them; worst: {order[0]!r}", *lines] if lines else []


def heldout_lines(certificate: Certificate) -> list[str]:
    """What is kept on held-out prompts by what ships and by plain CFG, with the difference; none where unmeasured."""
    heldout, ships, best = certificate.heldout, certificate.shipped.product, certificate.most_taught_plain
    names = {best: f"plain CFG at its best ({best})"}
    names |= {certificate.plain.product: "plain CFG without a guard", ships: "what ships"}
    lines = [f"  {name}: {heldout[which].value or heldout[which]}" for which, name in names.items() if which in heldout]
    if ships != best and all(which in heldout and heldout[which].resolved for which in (ships, best)):
        lines.append(f"  what ships less plain CFG at its best: {taught_difference(heldout[ships], heldout[best])}")
    return ["taught on held-out prompts, by noise that nothing was chosen by:", *lines] if lines else []


def _line(name: str, c: ProductCandidate, width: int, ships: bool) -> str:
    alignment = f"{c.alignment.value:.3f}" if c.alignment else "-"
    taught = c.left.interval() if c.left else "-"
    verdict = "" if c.phase == "search" else "promised" if c.proven else "not proven"
    mark = "*" if ships else " "
    return (
        f"{mark} {name:{width}} {c.risk.interval():24} {c.p_value:7.2g} {taught:24} {alignment:>9} "
        f"{c.evals_per_sample:8.1f}   {verdict}"
    ).rstrip()


def transfer_text(table: Sequence[Transfer]) -> str:
    """The transfer table, for a terminal."""
    lines = [f"{'sampler':32} {'steps':>5} {'from t':>6} {'sigma':>7} {'risk [95% interval]':24} {'alignment':>9}"]
    for row in table:
        where = "never" if row.transition is None else f"{row.transition:.0f}"
        sigma = "-" if row.sigma is None else f"{row.sigma:.3g}"
        alignment = f"{row.alignment.value:.3f}" if row.alignment else "-"
        lines.append(
            f"{row.scheduler:32} {row.timesteps:5} {where:>6} {sigma:>7} {row.risk.interval():24} {alignment:>9}"
        )
    return "\n".join(lines)
