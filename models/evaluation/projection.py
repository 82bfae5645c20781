"""
Vectors to the plane: principal components, and t-SNE (van der Maaten and Hinton, 2008) where scikit-learn is installed.

Both are deterministic: components have a fixed sign, and t-SNE starts from the components instead of at random.
scikit-learn comes with ``taesar[plots]``, not with every installation: with SciPy it is 190 MB for one picture of a
report, which says so where it is missing. openTSNE was weighed: it is faster for tens of thousands of points, needs
scikit-learn all the same, and there are about a thousand here.

Shapes: N = points, D = width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

PERPLEXITY = 30.0
# So many vectors say where the axes lie as well as millions do, in a second
SAMPLED = 20_000
# Beyond this quantile of their distance from the middle, points are drawn at the edge
EDGE_QUANTILE = 0.995
SEED = 2025


def principal_components(vectors_ND: Tensor, num_components: int) -> Tensor:
    """
    The centred vectors in their first principal components [N, num_components].

    Each component's sign is such that its largest loading is positive.
    """
    centre_D, axes_CD = principal_axes(vectors_ND, num_components)
    components_NC: Tensor = (vectors_ND.double() - centre_D) @ axes_CD.T
    return components_NC.float()


def principal_axes(vectors_ND: Tensor, num_components: int) -> tuple[Tensor, Tensor]:
    """
    The centre [D] of the vectors and their first principal directions [num_components, D], in double precision.

    Each direction's sign is such that its largest loading is positive.
    """
    centre_D = vectors_ND.double().mean(dim=0)
    _, _, loadings_CD = torch.linalg.svd(vectors_ND.double() - centre_D, full_matrices=False)
    loadings_CD = loadings_CD[:num_components]
    largest_C1 = loadings_CD.gather(1, loadings_CD.abs().argmax(dim=1, keepdim=True))
    return centre_D, loadings_CD * largest_C1.sign()


def filled_plane(vectors_ND: Tensor) -> Tensor:
    """
    Any number of vectors in their first two principal directions, float32 [N, 2].

    Both coordinates are in [-1, 1], each stretched so that nearly all points fill that range; outliers are at its ends.
    """
    sample_S = np.random.default_rng(SEED).permutation(len(vectors_ND))[:SAMPLED]
    centre_D, axes_CD = principal_axes(vectors_ND[torch.from_numpy(np.sort(sample_S))], 2)
    plane_NC = (vectors_ND.float() - centre_D.float()) @ axes_CD.float().T
    plane_N2 = torch.nn.functional.pad(plane_NC, (0, 2 - plane_NC.shape[1]))  # few or narrow vectors have one direction
    edge_2 = np.quantile(plane_N2.abs().numpy(), EDGE_QUANTILE, axis=0).clip(min=1e-12)
    return (plane_N2 / torch.from_numpy(edge_2).float()).clamp(-1, 1)


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
