"""A classifier of scikit-learn, which has no gradients: attacked by its scores alone."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import adap


def main() -> None:
    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)  # (N, 8, 8), grey
    eights = (digits.target == 8).astype(int)
    model = LogisticRegression(max_iter=200)
    model.fit(images[:1000].reshape(1000, -1) / 255, eights[:1000])

    def scores(batch: NDArray[np.float32]) -> NDArray[np.float64]:
        """(B, 1, 8, 8) floats in [0, 1] to (B,) scores; could as well ask a remote service."""
        found: NDArray[np.float64] = model.decision_function(batch.reshape(len(batch), -1))
        return found

    report = adap.audit(
        scores,
        images[1000:],
        eights[1000:],
        epsilon=0.1,
        attacks=[adap.Square(queries=30), adap.Noise()],
        sample=200,
        checks="quick",
    )
    print(report)
    for check in report.trust.checks if report.trust else []:
        if check.status == "caution":
            print(f"{check.name}: {check.message}")


if __name__ == "__main__":
    main()
