"""The two CIFAR data sets as they are published: their classes, files and checksums. A table; `conformer/archives.py` reads what it describes.

Each comes in a binary and a Python version, as an archive that holds one folder. Source, checksums included:
https://www.cs.toronto.edu/~kriz/cifar.html. Read next: `conformer/data.py`, which looks for them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CIFAR10", "CIFAR100", "Cifar", "Version"]


@dataclass(frozen=True)
class Version:
    """One way a data set is published: an archive that holds a folder of files.

    A binary file is a row of records, each `label_bytes` labels of which the last counts, then three planes of 32 x 32 pixels. A Python file
    (`label_bytes` is 0) is a pickled dictionary with the planes under "data" and the labels under `label_key`.
    """

    title: str
    archive: str
    md5: str
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    label_bytes: int = 0
    label_key: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """All of them, the training files first."""
        return self.train_files + self.test_files


@dataclass(frozen=True)
class Cifar:
    """One of the data sets. `mean` and `std` are those of the 50,000 training images' channels, with pixels from 0 to 1."""

    name: str
    title: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    versions: tuple[Version, ...]  # the first is the one to download


CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    versions=(
        Version(
            title="CIFAR-10's binary version",
            archive="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            folder="cifar-10-batches-bin",
            train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            test_files=("test_batch.bin",),
            label_bytes=1,
        ),
        Version(
            title="CIFAR-10's Python version",
            archive="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            train_files=tuple(f"data_batch_{number}" for number in range(1, 6)),
            test_files=("test_batch",),
            label_key="labels",
        ),
    ),
)

CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    classes=tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle
        chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
        kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange
        orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
        shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split()
    ),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    versions=(
        Version(
            title="CIFAR-100's binary version",
            archive="cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            folder="cifar-100-binary",
            train_files=("train.bin",),
            test_files=("test.bin",),
            label_bytes=2,  # coarse, then fine
        ),
        Version(
            title="CIFAR-100's Python version",
            archive="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            train_files=("train",),
            test_files=("test",),
            label_key="fine_labels",
        ),
    ),
)
