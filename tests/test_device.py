"""Too little memory: the work is done with fewer faces at once."""

import pytest
import torch

from bfr_core.device import full_precision, halving, in_batches


def room_for(most: int, sizes: list[int]):
    """Work that does not fit with more than `most` faces; the sizes that it was called with are noted."""

    def work(size: int) -> int:
        sizes.append(size)
        if size > most:
            raise torch.cuda.OutOfMemoryError("no room")
        return 10 * size

    return work


def test_work_is_halved_until_it_fits(caplog):
    sizes: list[int] = []
    assert halving(room_for(2, sizes), 9) == (20, 2) and sizes == [9, 4, 2]
    assert "too little memory for 9 faces at once; going on with 4" in caplog.text
    assert halving(room_for(9, sizes), 9) == (90, 9)


def test_a_size_that_may_not_be_small_is_halved_no_further(caplog):
    sizes: list[int] = []
    assert halving(room_for(128, sizes), 512, smallest=128, of="pixels a side") == (1280, 128)
    assert "too little memory for 512 pixels a side; going on with 256" in caplog.text
    with pytest.raises(torch.cuda.OutOfMemoryError):
        halving(room_for(127, sizes), 512, smallest=128)
    assert sizes == 2 * [512, 256, 128]


def test_what_does_not_fit_with_one_face_and_what_is_no_lack_of_memory_is_raised():
    sizes: list[int] = []
    with pytest.raises(torch.cuda.OutOfMemoryError):
        halving(room_for(0, sizes), 4)
    assert sizes == [4, 2, 1]

    def broken(size: int) -> None:
        sizes.append(size)
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        halving(broken, 4)
    assert sizes == [4, 2, 1, 4]


@pytest.mark.parametrize(("most", "slices"), [(9, ["0:4", "4:8", "8:9"]), (3, ["0:2", "2:4", "4:6", "6:8", "8:9"])])
def test_every_face_is_in_one_batch_and_a_size_that_fitted_is_kept(most, slices):
    tried: list[int] = []

    def work(part: slice) -> str:
        room_for(most, tried)(part.stop - part.start)
        return f"{part.start}:{part.stop}"

    assert list(in_batches(work, 9, 4)) == slices
    assert tried.count(4) == (1 if most < 4 else 2)


def test_a_backend_of_its_own_that_has_no_autocast_is_let_be():
    """DirectML is one: PyTorch says that it has autocast, and fails when it is asked for it."""
    with full_precision(torch.device("privateuseone:0")):
        pass
