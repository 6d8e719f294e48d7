"""Multinomial logistic regression by scikit-learn: the control beside the MLPs."""

import numpy as np
import numpy.typing as npt

from .heads import Floats, Weights

Ints = npt.NDArray[np.int64]


def fit_logistic(x: Floats, labels: Ints, *, classes: int, c: float) -> Weights:
    """Multinomial logistic regression on standardised vectors [n, d] (scikit-learn, lbfgs, L2 of strength 1/C).

    A class without clips is answered with probability zero in effect (bias -30).
    """
    from sklearn.linear_model import LogisticRegression

    present = np.unique(labels)
    model = LogisticRegression(C=c, max_iter=2000)
    model.fit(x.astype(np.float64), labels)
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -30.0)
    if len(present) == 2:  # one row: the log-odds of the second class
        weight[present], bias[present] = (
            np.stack([-model.coef_[0], model.coef_[0]]) / 2,
            np.array([-0.5, 0.5]) * model.intercept_,
        )
    else:
        weight[present], bias[present] = model.coef_, model.intercept_
    return {"output.weight": weight.astype(np.float32), "output.bias": bias.astype(np.float32)}
