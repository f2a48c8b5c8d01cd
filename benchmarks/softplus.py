"""Means of the softplus family under normal laws: the inner loop of the marginal fit."""

import numpy as np

import dal_native as dn


class SoftplusMoments:
    params = ([64, 100_000], [0.0, 0.1, 1.0, 3.0])
    param_names = ("laws", "sd")

    def setup(self, laws, sd):
        self.mean, self.sd = np.random.default_rng(0).normal(0, 3, laws), np.full(laws, sd)

    def time_moments(self, laws, sd):
        dn.softplus_moments(self.mean, self.sd)

    def time_moments_one_thread(self, laws, sd):
        dn.softplus_moments(self.mean, self.sd, threads=1)

    def time_numpy(self, laws, sd):
        dn.softplus_moments(self.mean, self.sd, backend="reference")

    def track_error(self, laws, sd):
        """Against scipy.integrate.quad, on a few laws; relative to 1 + |mean| + sd."""
        from scipy.integrate import quad

        found = dn.softplus_moments(self.mean[:8], self.sd[:8])[0]
        worst = 0.0
        for mu, value in zip(self.mean[:8], found, strict=True):
            law = lambda z, mu=mu: np.logaddexp(0, mu + sd * z) * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)  # noqa: E731
            kink = [-mu / sd] if sd and abs(mu / sd) < 9 else None
            exact = quad(law, -10, 10, points=kink, epsabs=1e-13, limit=200)[0]
            worst = max(worst, abs(value - exact) / (1 + abs(mu) + sd))
        return float(worst)

    track_error.unit = "relative"
