"""
Vectors to the plane: principal components, and t-SNE (van der Maaten and Hinton, 2008) where scikit-learn is installed.

Both are deterministic: components have a fixed sign, and t-SNE starts from the components instead of at random.
scikit-learn comes with ``taesar[plots]``, not with every installation: with SciPy it is 190 MB for one picture of a
report, which says so where it is missing. openTSNE was weighed: it is faster for tens of thousands of points, needs
scikit-learn all the same, and there are about a thousand here.

Shapes: N = points, D = width.
"""

from __future__ import annotations

import torch
from torch import Tensor

PERPLEXITY = 30.0


def principal_components(vectors_ND: Tensor, num_components: int) -> Tensor:
    """
    The centred vectors in their first principal components [N, num_components].

    Each component's sign is such that its largest loading is positive.
    """
    centred_ND = vectors_ND.double() - vectors_ND.double().mean(dim=0)
    _, _, loadings_CD = torch.linalg.svd(centred_ND, full_matrices=False)
    loadings_CD = loadings_CD[:num_components]
    largest_C1 = loadings_CD.gather(1, loadings_CD.abs().argmax(dim=1, keepdim=True))
    components_NC: Tensor = centred_ND @ (loadings_CD * largest_C1.sign()).T
    return components_NC.float()


def t_sne(vectors_ND: Tensor, *, perplexity: float = PERPLEXITY) -> Tensor | None:
    """
    t-SNE to two dimensions [N, 2]; None without scikit-learn.

    Args:
        vectors_ND: points, their first two columns the start (give principal components).
        perplexity: effective number of neighbours; at most (N - 1) / 3 is used.
    """
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError:
        return None
    start_N2 = vectors_ND[:, :2] / vectors_ND[:, 0].std().clamp(min=1e-12) * 1e-4
    few = max(1.0, (len(vectors_ND) - 1) / 3)
    model = TSNE(init=start_N2.numpy(), perplexity=min(perplexity, few), random_state=0)
    return torch.from_numpy(model.fit_transform(vectors_ND.numpy())).float()
