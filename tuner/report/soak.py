"""How a writer kept up, as a person reads it."""

from __future__ import annotations

from tuner.measure.soak import Soak


def format_soak(soak: Soak) -> str:
    """A few lines."""
    latency = ", ".join(f"{name} {value:,.2f}" for name, value in soak.latency_ms.items())
    stopped = "" if soak.played == soak.frames else f"; stopped far behind, after {soak.played} of them"
    lines = [
        f"{soak.target}: {soak.frames} frames ({soak.data}{stopped}) in {soak.seconds:,.1f} s, {soak.workers} workers,"
        f" ratio {soak.ratio:.2f}",
        f"  rate      asked {soak.rate_hz:,.5g} Hz, sustained {soak.sustained_hz:,.5g} Hz"
        f" ({soak.write_mb_s:,.0f} MB/s), in the worst second {soak.worst_hz:,.5g} Hz",
        f"  latency   ms until a frame is taken: {latency}",
        f"  queue     chunks: median {soak.queue['median']:.0f}, most {soak.queue['max']:.0f}"
        f" of {soak.queue['depth']:.0f}",
        f"  late      {soak.late} frames; {soak.shed} encoded with less effort",
        f"  closing   {soak.closing_s:.2f} s until all was synced",
    ]
    return "\n".join(lines)
