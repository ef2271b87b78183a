"""What to measure next, as a surrogate sees it: its guess over all configurations, mended by each that is measured."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats.qmc import MultivariateNormalQMC

from tuner.config import PLUGINS, Config
from tuner.errors import InputError
from tuner.evaluation import METRICS, Evaluation
from tuner.goal import Judge
from tuner.measure.target import Target
from tuner.read.sampling import Sample
from tuner.search.optimize import MutatingChooser
from tuner.search.surrogate import FEATURE_WEIGHTS, TARGETS, Data, Matrix, Surrogate, config_features
from tuner.space import Space

#: Configurations that a surrogate guesses, at most.
_MOST_GUESSED = 1 << 16

#: Of which target each metric follows, but for a known factor.
_TARGET_OF = {"ratio": 0, "encode_mb_s": 1, "decode_mb_s": 2, "frame_read_mb_s": 2, "sinogram_read_mb_s": 2}
#: Follows from the ratio and the speed of encoding.
_WRITE = "write_mb_s"

#: How much of what a guess misses is common to all configurations of the data, the rest to those that are alike.
_COMMON = 0.3
#: Standard deviation, as a logarithm, of what is measured: the ratio on a part of the sample, speeds alone and beside
#: other threads.
_RATIO_NOISE, _ALONE_NOISE, _PASSING_NOISE = 0.004, 0.04, 0.4
#: As many measurements as a guess of the surrogate's own uncertainty is worth.
_TRUST = 5.0
#: Draws of the posterior from which improvements are counted; a power of two, as they are of a Sobol sequence.
_DRAWS = 64
#: What a measurement takes beside encoding and decoding the sample once, seconds.
_SECONDS = 0.05
#: So many candidates are looked at closely; which, is found anew after as many measurements again.
_SHORTLIST, _RENEW = 1200, 24
#: So many that are expected to be the best in each target are looked at too.
_HIGHEST = 20
#: A timed requirement must be expected to be met by so much, as its low end of the spread has to meet it.
_SAFETY = 0.015
#: Before anything meets the requirements, the least that does is worth so much, as a logarithm.
_ANYTHING = 0.1
#: What is expected to miss a requirement is worth little, but not nothing: the guess may be what is wrong.
_NEARLY, _SOON = 0.01, 0.3
#: What is nearly as likely to meet the requirements as the most likely is as sure.
_AS_SURE = 0.95
#: An improvement below that, as a logarithm, is not worth a measurement.
_PER_CENT = 0.01


class Guide:
    """Ranks configurations of one data set for measuring.

    The surrogate's mean and standard deviation are the prior of a Gaussian process over configurations (Rasmussen and
    Williams, Gaussian Processes for Machine Learning, 2006, eq. 2.25 f.): what a measurement differs from its guess
    moves the guesses of those that are alike, and a part of it all of them.

    Parameters
    ----------
    surrogate : Surrogate
    configs : sequence of Config
        Distinct once resolved.
    data : Data
    reference_mb_s : float
        Rate of this machine's reference kernel.
    nbytes : int
        Size of the sample.
    access : mapping
        Metric of reading to the logarithm of its factor over decoding, shape (configurations,).
    seed : int
    target : Target, optional
        Where writing is to be guessed.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        configs: Sequence[Config],
        data: Data,
        reference_mb_s: float,
        nbytes: int,
        access: Mapping[str, NDArray[np.float64]],
        seed: int = 0,
        target: Target | None = None,
    ) -> None:
        self.configs = list(configs)
        self._places = {config: index for index, config in enumerate(self.configs)}
        features = config_features(self.configs, data)
        mean, self._std = surrogate.predict(self.configs, data, features)
        self._mean = mean + np.log([1.0, reference_mb_s, reference_mb_s])
        self._features = features * FEATURE_WEIGHTS
        kinds: dict[tuple[str, tuple[str, ...]], int] = {}
        self._kinds = np.array([kinds.setdefault((c.blosc2.codec, c.blosc2.filters), len(kinds)) for c in self.configs])
        self._nbytes = nbytes
        self._access = access
        self._target = target
        # The same for all configurations: of thousands that each had their own, the luckiest would seem the best.
        self._draws = MultivariateNormalQMC(np.zeros(len(TARGETS)), rng=seed).random(_DRAWS)
        self._measured: list[int] = []
        self._missed: list[Matrix] = []
        self._noise: list[Matrix] = []
        self._open = np.ones(len(self.configs), np.bool_)
        self._shortlist = np.arange(len(self.configs))
        self._renewed = -_RENEW

    def learn(self, evaluation: Evaluation) -> None:
        """Take in what was measured; a configuration that is not among them, or failed, teaches nothing."""
        place = self._places.get(evaluation.config) if evaluation.config else None
        if place is None:
            return
        self._open[place] = False
        if evaluation.failure is not None:
            return
        logs = np.log([max(evaluation.metrics[name], 1e-12) for name in TARGETS])
        timed = _ALONE_NOISE if evaluation.origin.get("timing") == "alone" else _PASSING_NOISE
        self._measured.append(place)
        self._missed.append(logs - self._mean[place])
        self._noise.append(np.array([_RATIO_NOISE, timed, timed]) ** 2)

    def propose(
        self, judge: Judge, evaluations: Sequence[Evaluation], count: int, prefer: str | None = None
    ) -> tuple[list[Config], float]:
        """Configurations to measure next, unlike each other, and how likely any is better by a per cent.

        Parameters
        ----------
        judge : Judge
        evaluations : sequence of Evaluation
            What was measured so far.
        count : int
        prefer : str, optional
            The objective that alone decides.

        Returns
        -------
        list of Config
            At most `count`; empty once all were measured.
        float
            The probability that some configuration meets the goal and is worth a per cent more than the best so far;
            1 while nothing meets the goal.
        """
        if len(self._measured) - self._renewed >= _RENEW or not self._open[self._shortlist].any():
            self._shortlist = np.arange(len(self.configs))
        candidates = self._shortlist[self._open[self._shortlist]]
        if not len(candidates):
            return [], 0.0
        gain, chance, likely = self._gain(judge, evaluations, candidates, prefer)
        if len(candidates) > _SHORTLIST:
            # With those that limits may refer to as the best.
            highest = [np.argsort(self._mean[candidates, target])[-_HIGHEST:] for target in range(len(TARGETS))]
            kept = np.unique(np.concatenate([self._best_of_each_kind(candidates, gain), *highest]))
            candidates, gain, chance = candidates[kept], gain[kept], chance[kept]
            self._shortlist, self._renewed = candidates, len(self._measured)
        picks: list[Config] = []
        for number in range(len(self._measured), len(self._measured) + min(count, len(candidates))):
            # In turn by what is most to be gained and by what most likely gains: the first alone goes on for long with
            # what would be far better and just misses a limit (a portfolio, as Hoffman, Brochu and de Freitas 2011).
            by = chance if number % 2 and chance.max() > 0 else gain
            best = int(np.argmax(by))
            picks.append(self.configs[candidates[best]])
            unlike = 1 - self._alike(candidates, candidates[best : best + 1])[:, 0]
            candidates = np.delete(candidates, best)
            gain, chance = (np.delete(of * unlike, best) for of in (gain, chance))
        return picks, likely

    def surest(self, judge: Judge, evaluations: Sequence[Evaluation], room: float, prefer: str | None) -> Config | None:
        """The best of what most surely meets the requirements; None once everything was measured.

        Parameters
        ----------
        judge : Judge
        evaluations : sequence of Evaluation
            What was measured so far.
        room : float
            By how much they are to be met, as a logarithm.
        prefer : str or None
            The objective that alone decides.
        """
        candidates = np.flatnonzero(self._open)
        if not len(candidates):
            return None
        mean, std = self.expected(candidates)
        bounds = self._bounds(judge, evaluations, candidates, mean)
        chance = np.zeros(len(candidates))
        for draw in self._draws:
            _, margin = self._worth_and_margin(judge, bounds, candidates, mean + std * draw, prefer)
            chance += margin >= room
        worth, _ = self._worth_and_margin(judge, bounds, candidates, mean, prefer)
        sure = chance >= _AS_SURE * chance.max()
        best = int(np.argmax(np.where(sure, worth, -math.inf)))
        return self.configs[int(candidates[best])]

    def _best_of_each_kind(self, candidates: NDArray[np.intp], gain: NDArray[np.float64]) -> NDArray[np.intp]:
        """As many of each codec and chain of filters: else twins of what seems good now would take every place."""
        order = np.argsort(-gain)
        order = order[np.argsort(self._kinds[candidates[order]], kind="stable")]
        _, first, counts = np.unique(self._kinds[candidates[order]], return_index=True, return_counts=True)
        place: NDArray[np.intp] = np.arange(len(order)) - np.repeat(first, counts)
        return order[place < _SHORTLIST // len(first)]

    def expected(self, places: NDArray[np.intp]) -> tuple[Matrix, Matrix]:
        """Mean and standard deviation of each target's logarithm, given what was measured."""
        mean, std = self._mean[places].copy(), self._std[places].copy()
        if not self._measured:
            return mean, std
        measured = np.array(self._measured)
        missed, noise = np.array(self._missed), np.array(self._noise)
        across = _COMMON + (1 - _COMMON) * self._alike(places, measured)
        among = _COMMON + (1 - _COMMON) * self._alike(measured, measured)
        for target in range(len(TARGETS)):
            here, there = self._std[places, target], self._std[measured, target]
            covariance = across * here[:, None] * there[None, :]
            inner = among * there[:, None] * there[None, :] + np.diag(noise[:, target])
            factor = np.linalg.cholesky(inner)
            half = np.linalg.solve(factor, covariance.T)
            white = np.linalg.solve(factor, missed[:, target])
            mean[:, target] += half.T @ white
            # A Student-t process (Shah, Wilson and Ghahramani 2014, lemma 3): guesses that turn out better than they
            # said, or worse, go on to do so.
            scale = (_TRUST + white @ white) / (_TRUST + len(white))
            std[:, target] = np.sqrt(np.maximum(here**2 - (half**2).sum(axis=0), 1e-8) * scale)
        return mean, std

    def _alike(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> Matrix:
        """How much of what one configuration misses another shares, from 0 to 1."""
        distance = np.zeros((len(first), len(second)))
        for column in self._features.T:
            distance += np.abs(column[first][:, None] - column[second][None, :])
        return np.exp(-distance)

    def _gain(
        self, judge: Judge, evaluations: Sequence[Evaluation], candidates: NDArray[np.intp], prefer: str | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Of each candidate the improvement over the best so far that is expected, and its chance; and `likely`.

        Expected improvement and probability of improvement by a per cent (Mockus 1978; Kushner 1964), for the cost.
        """
        mean, std = self.expected(candidates)
        bounds = self._bounds(judge, evaluations, candidates, mean)
        ranked = [e for e in judge.rank(evaluations, prefer) if all(v <= 0 for v in judge.violations(e, bounds))]
        best = judge.worth(ranked[0], prefer) if ranked else -math.inf
        gain, chance = np.zeros((2, len(candidates)))
        better = 0
        for draw in self._draws:
            worth, margin = self._worth_and_margin(judge, bounds, candidates, mean + std * draw, prefer)
            improvement = np.maximum(worth - max(best, worth.min() - _ANYTHING), 0.0)
            gain += np.where(margin >= 0, 1.0, _NEARLY * np.exp(np.minimum(margin, 0.0) / _SOON)) * improvement
            improves = (margin >= 0) & (worth > best + _PER_CENT)
            chance += improves
            better += bool(improves.any())
        cost = self._cost(mean)
        return gain / cost, chance / cost, better / _DRAWS if ranked else 1.0

    def _bounds(
        self, judge: Judge, evaluations: Sequence[Evaluation], candidates: NDArray[np.intp], mean: Matrix
    ) -> tuple[float, ...]:
        """The limit of each requirement; `best` is the best that is expected of all, not of those measured so far."""
        bounds = np.array(judge.bounds(evaluations), np.float64)
        of_best = np.array([c.name == "best" and c.op == ">=" for c in judge.goal.require], np.bool_)
        _, margin = self._worth_and_margin(judge, np.where(of_best, math.nan, bounds), candidates, mean, None)
        for place in np.flatnonzero(of_best) if (margin >= 0).any() else ():
            constraint = judge.goal.require[place]
            best = self._log(constraint.metric, mean, candidates)[margin >= 0].max()
            bounds[place] = np.fmax(bounds[place], constraint.limit * math.exp(best))
        return tuple(bounds.tolist())

    def _worth_and_margin(
        self,
        judge: Judge,
        bounds: Sequence[float] | NDArray[np.float64],
        candidates: NDArray[np.intp],
        logs: Matrix,
        prefer: str | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        margin = np.full(len(candidates), np.inf)
        for constraint, bound in zip(judge.goal.require, bounds, strict=True):
            if math.isnan(bound) or bound <= 0 or METRICS[constraint.metric].quality:  # which is that of all or of none
                continue
            over = self._log(constraint.metric, logs, candidates) - math.log(bound)
            safety = _SAFETY if METRICS[constraint.metric].timed else 0.0
            margin = np.minimum(margin, (over if constraint.op == ">=" else -over) - safety)
        worth = judge.worth_of_logs({m: self._log(m, logs, candidates) for m in judge.goal.maximize}, prefer)
        return worth, margin

    def _cost(self, mean: Matrix) -> NDArray[np.float64]:
        """The square root of the seconds that a measurement takes: what is slow is not put off for ever."""
        seconds: NDArray[np.float64] = _SECONDS + self._nbytes / 1e6 * np.exp(-mean[:, 1:]).sum(axis=1)
        return np.sqrt(seconds)

    def _log(self, metric: str, logs: Matrix, candidates: NDArray[np.intp]) -> NDArray[np.float64]:
        if metric == _WRITE and self._target is not None:
            written: NDArray[np.float64] = np.log(self._target.bound(np.exp(logs[:, 0]), np.exp(logs[:, 1])))
            return written
        column = logs[:, _TARGET_OF[metric]]
        return column + self._access[metric][candidates] if metric in self._access else column


def guessed(space: Space, sample: Sample, seed: int) -> list[Config]:
    """Configurations of a space that a surrogate may guess for a sample's frames, one of all that store the same bytes.

    All of the space, or 65,536 proposals at random where it holds more; codec plug-ins are measured, not guessed.

    Parameters
    ----------
    space : Space
        Bound to the sample's frames.
    sample : Sample
    seed : int
    """
    distinct: dict[Config, Config] = {}
    for config in _some_of(space, seed):
        if config.blosc2.codec not in PLUGINS:
            with contextlib.suppress(InputError):
                distinct.setdefault(config.resolve(sample.frame_shape, sample.dtype), config)
    return list(distinct.values())


def _some_of(space: Space, seed: int) -> Iterator[Config]:
    if space.size <= _MOST_GUESSED:
        yield from (config for _, config in space.grid())
        return
    rng = random.Random(seed)
    for _ in range(_MOST_GUESSED):
        with contextlib.suppress(InputError):
            yield space.suggest(MutatingChooser({}, (), rng))
