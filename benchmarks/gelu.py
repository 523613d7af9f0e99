"""Finds the coefficients of `ops/gelu.py`: a minimax fit by Lawson's reweighted least squares, and its largest error.

    python benchmarks/gelu.py        # a second; prints the coefficients and 5e-7

Needs mpmath (atanh(erf) loses all digits in float64 where erf is 1)."""

import math

import mpmath
import numpy as np

BOUND, DEGREE, NODES = 5.0, 6, 200


def slope(square: float) -> float:
    root = mpmath.sqrt(square)
    return float(mpmath.atanh(mpmath.erf(root / mpmath.sqrt(2))) / root)


def fit() -> np.ndarray:
    mpmath.mp.dps = 40
    squares = (np.cos((np.arange(NODES) + 0.5) * np.pi / NODES) + 1) / 2 * BOUND**2
    target = np.array([slope(square) for square in squares])
    roots = np.sqrt(squares)
    # an error of P moves x (1 + tanh(x P)) / 2 by x^2 sech^2(x P) / 2 of it
    share = 0.5 * squares * np.array([float(mpmath.sech(z) ** 2) for z in roots * target]) + 1e-9
    powers = np.vander(squares, DEGREE + 1, increasing=True)
    emphasis = np.ones(NODES)
    for _ in range(300):
        weight = share * np.sqrt(emphasis)
        rows = powers * weight[:, None]
        size = np.abs(rows).max(axis=0)
        coefficients = np.linalg.lstsq(rows / size, target * weight, rcond=None)[0] / size
        error = np.abs(powers @ coefficients - target) * share
        emphasis *= error / error.max() + 1e-3
        emphasis /= emphasis.max()
    return coefficients.astype(np.float32)


def largest_error(coefficients: np.ndarray) -> float:
    x = np.linspace(-8, 8, 400_001).astype(np.float32)
    square = x * x
    values = np.zeros_like(x) + coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        values = values * square + coefficient
    approximate = np.float32(0.5) * x * (1 + np.tanh(x * values))
    exact = np.array([0.5 * value * math.erfc(-value / math.sqrt(2)) for value in x.astype(float)])
    return float(np.abs(approximate - exact).max())


if __name__ == "__main__":
    found = fit()
    print([float(value) for value in found], f"largest error {largest_error(found):.1e}")
