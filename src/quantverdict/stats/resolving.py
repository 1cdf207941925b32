"""How many pairs resolve a paired loss against a margin, quickly enough for every outcome of a study."""

from __future__ import annotations

import math

from quantverdict.stats.distributions import normal_quantile
from quantverdict.stats.paired import constrained_variance
from quantverdict.stats.power import n_resolved

_MOST = 1 << 20
"""The root of as many pairs as nobody asks."""


def n_rate(discordance: float, loss: float, margin: float, power: float = 0.8, alpha: float = 0.025) -> int | None:
    """Pairs until the score test of a 0/1 metric tells loss from margin with `power`; None where none is enough.

    Nam (1997, Biometrics 53:1422), for any true loss: n = ((z_a sd0 + z_b sd1) / (margin - loss))^2, with sd0 under the
    null. For a loss of 0 it is `power.n_noninferior`. Where no pair differs, the chance is 0 up to some number of pairs
    and 1 from there on, so that number is the exact one; elsewhere `power.n_resolved` is within some 10 % of this.

    Args:
        discordance: share of pairs that differ; raised to abs(loss) where it is less.
        loss: the true one, P(lost) - P(gained).
        margin: above 0 and below 1.
        power: wanted.
        alpha: one-sided level.
    """
    if not 0 < margin < 1 or not 0 <= discordance <= 1 or not -1 <= loss <= 1:
        raise ValueError(f"margin {margin}, discordance {discordance}, loss {loss}")
    share = max(discordance, abs(loss))
    if share == 0:
        return n_resolved(0.0, 0.0, margin, power, alpha)
    lost, gained = (share + loss) / 2, (share - loss) / 2
    null, true = constrained_variance(gained, lost, -margin), share - loss**2
    return _pairs(math.sqrt(null), math.sqrt(true), margin - loss, (power, alpha))


def n_mean(sd: float, loss: float, margin: float, power: float = 0.8, alpha: float = 0.025) -> int | None:
    """The same for a mean difference whose standard deviation is `sd`.

    At least as many as rule out, for `non_inferior`, a loss of the margin by rare prompts that lose everything: these
    may be met by none (as `noninferiority.mean_loss` does).
    """
    pairs = _pairs(sd, sd, margin - loss, (power, alpha))
    rare = math.ceil(math.log(alpha) / math.log(1 - margin)) if loss < margin else 1
    return None if pairs is None else max(pairs, rare)


def _pairs(null: float, true: float, gap: float, levels: tuple[float, float]) -> int | None:
    power, alpha = levels
    reach = normal_quantile(1 - alpha) * null + normal_quantile(power) * true
    return None if reach >= abs(gap) * _MOST else max(1, math.ceil((reach / gap) ** 2))
