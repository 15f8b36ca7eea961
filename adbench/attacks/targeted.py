"""AutoAttack's targeted attacks, on several target classes at a time.

pyautoattack attacks the images that are left with one target class after the other. Where few are left, their passes
leave a processor partly idle; together with their other target classes they fill it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Attack = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x' (M, C, H, W) for images (M, C, H, W), labels (M,) and target classes (M,)."""

Falls = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Where (M,) x' breaks its image: of images, x' and labels."""


def apgd(attack: Any, falls: Falls, most: int, x: Tensor, y: Tensor) -> Tensor:
    """What pyautoattack's `APGDAttack_targeted.perturb` does from one start, with the target classes of `together`."""
    attack.init_hyperparam(x)
    torch.manual_seed(attack.seed)

    def run(images: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        attack.y_target = targets
        x_adv: Tensor = attack.attack_single_run(images, labels)[3]
        return x_adv

    return together(run, falls, x, y, attack.model(x), attack.n_target_classes, most)


def fab(attack: Any, falls: Falls, most: int, x: Tensor, y: Tensor) -> Tensor:
    """What pyautoattack's `FABAttack_PT.perturb` does; where it is targeted, from one start, as `together` has it."""
    if not attack.targeted:
        x_adv: Tensor = type(attack).perturb(attack, x, y)
        return x_adv

    def run(images: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        # Its targeted run takes one rank for all images; the other run asks for no more than logits and gradients.
        attack.get_diff_logits_grads_batch = lambda z, _: attack.get_diff_logits_grads_batch_targeted(
            z, labels, targets
        )
        # With labels it would leave out what rounding misclassifies in this batch, and targets would be others'.
        x_adv: Tensor = attack.attack_single_run(images)
        return x_adv

    try:
        return together(run, falls, x, y, attack._predict_fn(x), attack.n_target_classes, most)
    finally:
        attack.__dict__.pop("get_diff_logits_grads_batch", None)


@torch.no_grad()
def together(run: Attack, falls: Falls, x: Tensor, y: Tensor, logits: Tensor, classes: int, most: int) -> Tensor:
    """The x' (N, C, H, W) of a targeted attack, or the image where it breaks none.

    Targets are the `classes` likeliest classes at x, from the second on, by `logits` (N, K); images that these
    misclassify are not attacked. As many targets are taken at a time as make at most `most` pairs with the images that
    are left, but at least one; an image is done with when one of its x' breaks it.
    """
    left = (logits.argmax(1) == y).nonzero().squeeze(1)
    ranked = logits.scatter(1, y[:, None], torch.inf).argsort(stable=True, dim=1, descending=True)
    examples, rank = x.clone(), 1
    while rank <= classes and len(left):
        targets = ranked[left, rank : min(rank + max(1, most // len(left)), classes + 1)]
        several = targets.shape[1]
        images, labels = x[left].repeat_interleave(several, 0), y[left].repeat_interleave(several)
        x_adv = run(images, labels, targets.flatten())
        broken = falls(images, x_adv, labels).view(-1, several)
        first = torch.arange(len(left), device=x.device) * several + broken.int().argmax(1)
        ended = broken.any(1)
        examples[left[ended]] = x_adv[first[ended]]
        left, rank = left[~ended], rank + several
    return examples
