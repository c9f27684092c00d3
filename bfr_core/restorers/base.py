"""The interface of a restorer: everything that the rest of the program needs to know of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..damage.grey import grey_like
from ..device import Precision, autocast, check_precision, default_precision
from ..files.photos import printable

# The verdict in a restorer's file on its tuning -> what its users are told.
CAUTIONS = {
    "keep_base": "keep the base, which does better on this damage",
    "cannot_tell": "cannot tell; compare its results with those of the base",
}


@dataclass(eq=False)
class Restorer:
    """A network that turns a damaged face into a clean one of the same size.

    module: the network, in eval mode unless it is being tuned. architecture: spandrel's name of it.
    size: side in pixels of the standard crops it was trained on.
    name, sha256, licence: of the file it came from, for the record. metadata: what that file says of itself.
    file_keys: the file's name of a tensor where it differs from the module's. precision: in which `restore` computes.
    """

    module: nn.Module
    architecture: str
    size: int
    name: str
    sha256: str = ""
    licence: str = "unknown"
    metadata: Mapping[str, str] = field(default_factory=dict)
    file_keys: Mapping[str, str] = field(default_factory=dict)
    precision: Precision = "float32"

    #: False for a network that fails with its channels last in memory.
    channels_last = True
    #: True if it is tuned on codes of a codebook instead of pixels; see `codeformer.CodeFormer`.
    tuned_by_codes = False
    #: Why it can be neither tuned nor saved, and what to give instead; "" if it can be.
    not_tuned_because: ClassVar[str] = ""
    #: True for a network that makes a face of whatever it is given; it cannot restore the rest of a photo.
    makes_faces_only: ClassVar[bool] = False
    #: The function of the network's source that spells x * sigmoid(x) out, see `silu.with_one_kernel`; "" if none does.
    spelt_out_silu: ClassVar[str] = ""

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def caution(self) -> str:
        """A line of warning if the verdict in its file is not to use it, or that nobody can tell; else ""."""
        said = CAUTIONS.get(self.metadata.get("verdict", ""))
        base = self.metadata.get("base", "")[:80]
        return printable(f"{self.name}: the verdict on its tuning was: {said} ({base})") if said else ""

    def to(self, device: torch.device | str) -> Restorer:
        """This restorer, its network moved to `device`."""
        self.module.to(device)
        return self

    def default_precision(self) -> Precision:
        """The precision that "auto" means for this network on its device; it is never found by timing."""
        return default_precision(self.device)

    def at_precision(self, precision: Precision) -> Restorer:
        """A copy whose `restore` computes in `precision`. Raises ValueError for a name that is not one."""
        chosen = self.default_precision() if check_precision(precision) == "auto" else precision
        return replace(self, precision=chosen)

    def with_fidelity(self, fidelity_weight: float) -> Restorer:
        """A copy with this fidelity_weight, 0 to 1, of CodeFormer; the restorer itself where no network has one."""
        return self

    def __call__(self, lq: Tensor) -> Tensor:
        """Restored faces: (B, 3, size, size) RGB in [0, 1] -> the same shape; differentiable, not clamped."""
        return self.module(lq)

    def placed(self, lq: Tensor) -> Tensor:
        """`lq` on the network's device, in the memory layout that suits it: a third faster on a CPU."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return lq.to(self.device).contiguous(memory_format=layout)

    def tuned_parameters(self, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of `module`, a copy of this one's, that tuning moves."""
        return module.named_parameters()

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        """Parts of `module`, a copy of this one's, whose inner values may be computed again instead of kept."""
        return _outermost_listed(module)

    @torch.inference_mode()
    def restore(self, lq: Tensor) -> Tensor:
        """Restored faces for looking at: as `__call__`, clamped to [0, 1], without gradients.

        Raises ValueError if the network answers with NaN.
        """
        try:
            with autocast(self.device, self.precision):
                restored = self(self.placed(lq)).float()
        except IndexError:
            raise ValueError(f"restorer {self.name} looks outside its own tables; the file is damaged") from None
        if not torch.isfinite(restored).all():
            raise ValueError(f"restorer {self.name} gave NaN; its weights are damaged or its precision is too low")
        return restored.clamp(0, 1).contiguous()

    def restore_and_tell(self, lq: Tensor) -> tuple[Tensor, list[str]]:
        """`restore`, and for each face the name of what restored it, where that differs between faces; else ""."""
        return self.restore(lq), [""] * len(lq)

    def that_served(self, name: str) -> Restorer:
        """The restorer that `restore_and_tell` calls by this name."""
        return self

    def for_background(self, served: Sequence[str]) -> Restorer:
        """The restorer for the rest of a photo whose faces were restored by `served`, see `restore_and_tell`."""
        return self

    def restore_each(self, faces: Tensor) -> Tensor:
        """`restore` with one face a call, so that any number fits wherever one does; the result is on the CPU."""
        return torch.cat([self.restore(face).cpu() for face in faces.split(1)])

    def restore_without_colour(self, faces: Tensor) -> Tensor:
        """`restore_each`, less the colours that it gives to grey faces: as photos are restored."""
        return grey_like(self.restore_each(faces), faces)


def _outermost_listed(module: nn.Module) -> list[nn.Module]:
    """The callable members of the module's lists, none of them inside another."""
    found: list[nn.Module] = []
    for child in module.children():
        listed = isinstance(module, nn.ModuleList) and type(child).forward is not nn.Module.forward
        found += [child] if listed else _outermost_listed(child)
    return found
