"""What `tuner read` tells of a file: what is in it, how it is stored, and what its noise allows."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.estimate import Doubt, believe, estimate
from tuner.noise import entropy_bound
from tuner.read.sampling import Sample, with_repeats
from tuner.report.suggestion import Suggestion, suggestion
from tuner.stack import Kind, Stack
from tuner.traits import stuck, traits


def inspect(stack: Stack, sample: Sample) -> dict[str, Any]:
    """What a stack holds, as numbers, texts and lists that JSON knows.

    Fractions, range and noise are those of the sample; the rest is the file's. A value that does not exist is None.

    Parameters
    ----------
    stack : Stack
    sample : Sample
        Frames of that stack.
    """
    frames = np.concatenate([run.frames for run in sample.runs])
    valid = stack.valid(frames)
    found = traits(frames, valid, stack.saturated(frames))
    runs = with_repeats(sample, stack)
    noises = estimate(stack, runs)
    doubts: tuple[Doubt, ...] = ()
    step = 1.0 if frames.dtype.kind != "f" else found["step"]
    if noises:
        taken, doubts = believe(noises[:1] if stack.photon_counting else noises, stack, runs, math.inf, step)
        noises = (taken, *(noise for noise in noises if noise is not taken))
    modelled = [
        asdict(noise)
        | {
            "sigma_at_mean": math.sqrt(noise.variance(np.array(found["mean"]))),
            "ratio_bound": _finite(entropy_bound(noise, frames, valid, step)),
        }
        for noise in noises
    ]
    counts = True if modelled and _counts(modelled[0], found["step"]) else None
    counts = False if found["minimum"] < 0 else counts
    # Frames of one value have nothing that could be kept in part; of raw gains no shipped step knows.
    varies = found["minimum"] < found["maximum"] and not stack.tells_gain(frames)
    suggested = suggestion(stack, found["step"], counts) if varies else None
    return {
        "name": stack.name,
        "dataset": stack.dataset,
        "shape": list(stack.shape),
        "axes": list(stack.axes),
        "frames": len(stack),
        "written_frames": int(stack.written().sum()),
        "frame_shape": list(stack.frame_shape),
        "dtype": str(stack.dtype),
        "nbytes": stack.nbytes,
        "storage": _storage(stack),
        "kinds": _kinds(stack),
        "sampled": {"frames": len(frames), "pixels": frames.size, "valid_pixels": int(np.count_nonzero(valid))},
        "invalid": {
            "mask": stack.mask is not None,
            "values": list(stack.invalid),
            "saturation": stack.saturation,
            "underload": stack.underload,
            "nan_fraction": _nan_fraction(frames),
        },
        "traits": found,
        "always_zero_fraction": _always_zero(frames, valid),
        "stuck_fraction": stuck(frames, valid)[1],
        "photon_counting": stack.photon_counting,
        "noise": modelled,
        "noise_doubts": [str(doubt) for doubt in doubts if not doubt.safe],
        "suggestion": asdict(suggested) if suggested else None,
    }


def _storage(stack: Stack) -> dict[str, Any] | None:
    if stack.storage is None:
        return None
    storage = stack.storage
    return {
        "nbytes": storage.nbytes,
        "chunks": None if storage.chunks is None else list(storage.chunks),
        "filters": list(storage.filters),
        "ratio": _stored_ratio(stack),
    }


def _stored_ratio(stack: Stack) -> float | None:
    """The ratio that the stored frames have today; frames that were never written do not count."""
    nbytes = stack.storage.nbytes if stack.storage else 0
    return int(stack.written().sum()) * stack.frame_nbytes / nbytes if nbytes else None


def _kinds(stack: Stack) -> dict[str, int]:
    """Frames of each kind, those kept beside the data with them."""
    kinds = np.zeros(len(stack), np.uint8) if stack.kinds is None else stack.kinds
    counts = {kind.name.lower(): int(np.count_nonzero(kinds == kind)) for kind in Kind}
    counts["flat"] += len(stack.flats) if stack.flats else 0
    counts["dark"] += len(stack.darks) if stack.darks else 0
    return {name: count for name, count in counts.items() if count}


def _nan_fraction(frames: NDArray[Any]) -> float:
    return 1 - np.count_nonzero(np.isfinite(frames)) / frames.size if frames.dtype.kind == "f" else 0.0


def _always_zero(frames: NDArray[Any], valid: NDArray[np.bool_]) -> float:
    """Share of a frame's pixels that are valid and 0 in all of several frames: unmarked gaps, or no light."""
    return np.count_nonzero(((frames == 0) & valid).all(axis=0)) / frames[0].size if len(frames) > 1 else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def format_inspection(inspection: dict[str, Any]) -> str:
    """An inspection as lines of text, labels left and values right."""
    rows = [*_file_rows(inspection), *_value_rows(inspection), *_noise_rows(inspection)]
    if inspection["suggestion"] is not None:
        rows += [("", ""), ("try", str(Suggestion(**inspection["suggestion"])))]
    width = max(len(label) for label, _ in rows)
    title = inspection["name"] + (f"  {inspection['dataset']}" if inspection["dataset"] else "")
    return "\n".join([title, *(f"  {label:<{width}}  {text}".rstrip() for label, text in rows)])


def _file_rows(inspection: dict[str, Any]) -> list[tuple[str, str]]:
    shape = " x ".join(map(str, inspection["shape"]))
    axes = f" ({', '.join(inspection['axes'])})" if inspection["axes"] else ""
    frame = " x ".join(map(str, inspection["frame_shape"]))
    what = "image" if len(inspection["frame_shape"]) == 2 else "spectrum"
    written = inspection["written_frames"]
    missing = f", of which {written} were written" if written < inspection["frames"] else ""
    rows = [
        ("shape", shape + axes),
        ("frames", f"{_plural(inspection['frames'], what)} of {frame} pixels{missing}"),
        ("pixel", f"{inspection['dtype']}, {_bytes(inspection['nbytes'])} in all"),
    ]
    storage = inspection["storage"]
    if storage is not None:
        stored = "uncompressed" if not storage["filters"] else " + ".join(storage["filters"])
        ratio = f", ratio {storage['ratio']:.2f}" if storage["ratio"] and storage["filters"] else ""
        chunks = "" if storage["chunks"] is None else f", in chunks of {' x '.join(map(str, storage['chunks']))}"
        rows.append(("stored", f"{stored}{ratio}: {_bytes(storage['nbytes'])}{chunks}"))
    if set(inspection["kinds"]) != {"data"}:
        rows.append(("kinds", ", ".join(f"{count} {kind}" for kind, count in inspection["kinds"].items())))
    return rows


def _value_rows(inspection: dict[str, Any]) -> list[tuple[str, str]]:
    found, sampled, invalid = inspection["traits"], inspection["sampled"], inspection["invalid"]
    size = _bytes(sampled["pixels"] * np.dtype(inspection["dtype"]).itemsize)
    rows = [("", ""), ("looked at", f"{_plural(sampled['frames'], 'frame')}, {size}")]
    # Where darks were subtracted, the marks of counters are values like any other: they stay, and are no gaps.
    doubtful = invalid["values"] == [-1, -2] and found["minimum"] < -2
    beside = ", though there are values below" if doubtful else ""
    marks = [text for text in (
        "the file's mask" if invalid["mask"] else "",
        f"marked by {' or '.join(map(str, invalid['values']))}{beside}" if invalid["values"] else "",
        f"below {_number(invalid['underload'])}" if invalid["underload"] is not None else "",
        "not a number" if invalid["nan_fraction"] else "",
    ) if text]  # fmt: skip
    rows.append(("masked", _percent(found["masked_fraction"]) + (f" ({', '.join(marks)})" if marks else "")))
    if invalid["saturation"] is not None:
        rows.append(
            ("saturated", f"{_percent(found['saturated_fraction'])} ({_number(invalid['saturation'])} and above)")
        )
    if not sampled["valid_pixels"]:
        return [*rows, ("values", "none that is valid")]
    fraction = inspection["always_zero_fraction"]
    always = f" ({_percent(fraction)} of the pixels are 0 in every frame)" if fraction else ""
    alike = inspection["stuck_fraction"]
    gaps = f" ({_percent(alike)} of the pixels have the greatest in every frame: gaps?)" if alike else ""
    span = f"{_number(found['minimum'])} to {_number(found['maximum'])}, mean {_number(found['mean'], 4)}"
    rows += [
        ("range", span + gaps),
        ("zeros", _percent(found["zero_fraction"]) + always),
        ("bits used", f"{found['effective_bits']:.0f} of {_bits(inspection['dtype'])}"),
    ]
    if text := _step(inspection["dtype"], found["step"]):
        rows.append(("steps", text))
    if found["missing_codes"] > 0.001 and not doubtful:
        rows.append(
            ("gaps", f"{_percent(found['missing_codes'])} of the codes never occur: rounded or rescaled before")
        )
    return rows


def _noise_rows(inspection: dict[str, Any]) -> list[tuple[str, str]]:
    if not inspection["sampled"]["valid_pixels"]:
        return []
    if not inspection["noise"]:
        return [("", ""), ("noise", "unknown: too few pixels or frames to estimate it from")]
    believed, *others = inspection["noise"]
    mean = inspection["traits"]["mean"]
    counts = ", as photon counts have it" if _counts(believed, inspection["traits"]["step"]) else ""
    rows = [
        ("", ""),
        ("noise", f"sigma {_sigma(believed)} at the mean of {_number(mean, 3)}: {believed['source']}"),
        ("", _model(believed) + counts),
    ]
    rows += [("doubtful", doubt) for doubt in inspection["noise_doubts"][:1]]
    if believed["ratio_bound"] is None:
        rows.append(("lossless", "no noise to be found that would limit the ratio"))
    else:
        rows.append(("lossless", f"ratio {_ratio(believed['ratio_bound'])} at most, as noise cannot be compressed"))
    also = [f"sigma {_sigma(noise)}: {noise['source']}" for noise in others]
    return rows + [("" if number else "not taken", text) for number, text in enumerate(also)]


def _sigma(noise: dict[str, Any]) -> str:
    return _number(noise["sigma_at_mean"], 2)


def _model(noise: dict[str, Any]) -> str:
    """The model in the words of `Noise`, without terms that make less than a hundredth of the variance at the mean."""
    gain, offset, read_noise = noise["gain"], noise["offset"], noise["read_noise"]
    little = 0.01 * noise["sigma_at_mean"] ** 2
    if gain == 0:
        return "the same at every value"
    light = f"{_number(gain, 2)} * " + (f"(value - {_number(offset, 2)})" if gain * offset > little else "value")
    return f"variance = {light}" + (f" + {_number(read_noise, 2)}^2" if read_noise**2 > little else "")


def _counts(noise: dict[str, Any], step: float) -> bool:
    """Whether the noise is, within its error, that of counting whole photons."""
    gain, offset, read_noise = noise["gain"], noise["offset"], noise["read_noise"]
    return step == 1 and 0.9 <= gain <= 1.1 and offset < 1 and read_noise < 0.3


def _step(dtype: str, step: float) -> str:
    if dtype.startswith("float"):
        if step == 0:
            return ""
        return "whole numbers held in floats" if step == 1 else f"multiples of {_number(step)} held in floats"
    return f"multiples of {_number(step)}" if step > 1 else ""


def _bits(dtype: str) -> str:
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return "8"
    return f"the {np.finfo(kind).nmant + 1} that a {dtype} keeps" if kind.kind == "f" else str(np.iinfo(kind).bits)


def _plural(count: int, word: str) -> str:
    plural = {"spectrum": "spectra"}.get(word, f"{word}s")
    return f"{count} {word if count == 1 else plural}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def _percent(fraction: float) -> str:
    """A share, with as many digits as say something.

    >>> [_percent(f) for f in (0, 1e-7, 0.0123, 0.5, 0.9999, 1)]
    ['none', '< 0.001 %', '1.2 %', '50 %', '99.99 %', 'all']
    """
    if fraction <= 0:
        return "none"
    if fraction >= 1:
        return "all"
    if fraction < 1e-5:
        return "< 0.001 %"
    return f"{100 * fraction:.4g} %" if fraction > 0.99 else f"{100 * fraction:.2g} %"


def _number(value: float, digits: int = 7) -> str:
    """A number with that many digits; whole numbers whole.

    >>> _number(1046527.0), _number(0.25), _number(12345.678, 2), _number(9.4251, 2)
    ('1046527', '0.25', '12346', '9.4')
    """
    if abs(value) < 1e15 and (value == round(value) or abs(value) >= 10 ** (digits - 1)):
        return str(round(value))
    return f"{value:.{digits}g}"


def _bytes(nbytes: int) -> str:
    """A size in decimal units.

    >>> _bytes(999), _bytes(12_582_912), _bytes(20_000_000_000)
    ('999 B', '12.6 MB', '20 GB')
    """
    size = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
