"""bmdal-reg's MaxDet: greedy determinants in kernel space, a linear kernel on whitened, weighted rows plus
the identity.

det(K_S + I) over a batch S is det(I + sum f f'), so the picks are those of the D-optimal rule. Each pick
costs it two passes: the kernel's next column, and the product with the columns so far. Argument 2: the
precision.
"""

import sys

import numpy as np

from benchmarks.peers import exchange


def prepare(given: exchange.Given):
    import torch

    vars(np)["Inf"] = np.inf  # bmdal-reg 3.0.2 uses a name that NumPy 2 dropped
    from bmdal_reg.bmdal.algorithms import select_batch
    from bmdal_reg.bmdal.feature_data import TensorFeatureData

    rows = torch.from_numpy(given.features(sys.argv[2]))

    def select() -> list[int]:
        chosen, report = select_batch(
            batch_size=given.size,
            models=[None],
            data={"train": TensorFeatureData(rows[:1]), "pool": TensorFeatureData(rows)},
            y_train=None,
            base_kernel="linear",
            kernel_transforms=[],
            selection_method="maxdet",
            maxdet_sigma=1.0,
            sel_with_train=False,
            verbosity=0,
        )
        if report["selection_status"]:
            raise RuntimeError(report["selection_status"])
        return chosen.tolist()

    return select


if __name__ == "__main__":
    exchange.serve(prepare, "bmdal-reg", "torch", "bmdal_reg.bmdal.algorithms")
